"""Tasks one after another: which columns of one output are each task's, and what was learned and forgotten of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mobillm_flower.errors import ArgumentError, MismatchError


@dataclass(frozen=True)
class TaskSpan:
    """The columns of one task in an output of appended classes.

    Parameters
    ----------
    name : str
        The task's, unique in its sequence.
    labels : tuple of str
        Its K_t class names, in the order of its columns. Another task may have classes of the same names.
    start, stop : int
        Its columns are start ≤ k < stop.
    """

    name: str
    labels: tuple[str, ...]
    start: int
    stop: int

    @property
    def num_classes(self) -> int:
        """K_t."""
        return self.stop - self.start

    def widen(self, base: Tensor, num_outputs: int) -> Tensor:
        """Return p_b over the classes of all tasks, [B, K], of the task's own p_b [B, K_t].

        (K_t/K)·p_b in the task's columns and 1/K in the others: a distribution, and 1/K throughout where p_b is the
        constant 1/K_t. Inside the task nothing changes but a factor.
        """
        wide = base.new_full((len(base), num_outputs), 1 / num_outputs)
        wide[:, self.start : self.stop] = base * (self.num_classes / num_outputs)
        return wide


@dataclass(frozen=True)
class TaskSequence:
    """Tasks in the order in which they came; their classes are appended to one output of K = Σ K_t columns.

    Parameters
    ----------
    spans : tuple of TaskSpan
        Each begins where the one before it ends; see `append`.

    Examples
    --------
    >>> tasks = TaskSequence().append("spam", ("ham", "spam")).append("topic", ("world", "sports", "business"))
    >>> tasks.span_of("topic").start, tasks.num_outputs
    (2, 5)
    """

    spans: tuple[TaskSpan, ...] = ()

    @property
    def num_outputs(self) -> int:
        """K, the columns of all tasks."""
        return self.spans[-1].stop if self.spans else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_t of each task."""
        return tuple(span.num_classes for span in self.spans)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all columns, "task: class", each once."""
        return tuple(f"{span.name}: {label}" for span in self.spans for label in span.labels)

    def append(self, name: str, labels: Sequence[str]) -> TaskSequence:
        """Return the sequence with one more task, whose columns come last.

        Raises
        ------
        ArgumentError
            The name is empty or taken, there are fewer than two classes, or two of them have one name.
        """
        if not name or name in self.names:
            raise ArgumentError("task", name, f"cannot be added: give it a name beside {', '.join(self.names) or '“”'}")
        if len(labels) < 2:
            raise ArgumentError("labels", len(labels), f"is too few classes: task {name!r} needs two")
        if len(set(labels)) < len(labels):
            second = next(i for i, label in enumerate(labels) if label in labels[:i])
            raise ArgumentError(
                "labels", len(labels), f"classes of task {name!r}: number {second} has the name of an earlier one"
            )
        span = TaskSpan(name, tuple(labels), self.num_outputs, self.num_outputs + len(labels))
        return TaskSequence((*self.spans, span))

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(span.name for span in self.spans)

    def span_of(self, name: str) -> TaskSpan:
        """Return a task's span.

        Raises
        ------
        MismatchError
            No task has this name.
        """
        for span in self.spans:
            if span.name == name:
                return span
        raise MismatchError(
            f"no task is called {name!r}; learned were, in this order: {', '.join(self.names) or 'none'}"
        )


@dataclass(frozen=True)
class SequenceMeasures:
    """What is left of tasks that were learned one after another; accuracies a[i, j] on task j after task i, T tasks.

    Parameters
    ----------
    average : float
        AA = (1/T) Σ_j a[T, j].
    backward_transfer : float
        BWT = (1/(T − 1)) Σ_{j<T} (a[T, j] − a[j, j]); 0 of one task.
    forgetting : tuple of float
        Of each task but the last: the best of a[i, j], j ≤ i < T, less a[T, j].
    """

    average: float
    backward_transfer: float
    forgetting: tuple[float, ...]

    @classmethod
    def of(cls, accuracies: Sequence[Sequence[float]]) -> SequenceMeasures:
        """Measure accuracies, row i of which has one value for each of the tasks 0…i at least.

        Raises
        ------
        ArgumentError
            A row is too short.
        """
        count = len(accuracies)
        if not count or any(len(row) <= i for i, row in enumerate(accuracies)):
            raise ArgumentError("accuracies", [len(row) for row in accuracies], "need a value for each task so far")
        last, before = accuracies[-1], range(count - 1)
        return cls(
            average=sum(last[:count]) / count,
            backward_transfer=sum(last[j] - accuracies[j][j] for j in before) / max(1, count - 1),
            forgetting=tuple(max(row[j] for row in accuracies[j:-1]) - last[j] for j in before),
        )
