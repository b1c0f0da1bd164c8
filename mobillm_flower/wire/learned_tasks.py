"""Tasks that one side network learns one after another: each one's contract, and targets over the classes of all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch.nn import functional

from mobillm_flower.core.targets import recover
from mobillm_flower.core.task_sequence import TaskSequence
from mobillm_flower.errors import MismatchError, UnsupportedError
from mobillm_flower.wire.contract import TaskContract
from mobillm_flower.wire.target_bytes import TargetBatch


@dataclass(frozen=True)
class LearnedTasks:
    """Tasks in the order in which they came; their classes are appended to one output of K = Σ K_t columns.

    Devices know their own task alone: they send Δy over its K_t classes. The server spreads it over all K columns:
    p_b is K_t/K times the device's own in the task's columns and 1/K in every other, a distribution over K classes, and
    Δy = onehot(y) − p_b. Where p_b is constant, it is 1/K everywhere.

    Parameters
    ----------
    contracts : mapping of str to TaskContract
        By the tasks' names, in order.
    """

    contracts: Mapping[str, TaskContract]

    @classmethod
    def first(cls, name: str, contract: TaskContract) -> LearnedTasks:
        """Return the tasks of a run that goes on with no other; raises as `append`."""
        return cls({}).append(name, contract)

    def append(self, name: str, contract: TaskContract) -> LearnedTasks:
        """Return the tasks with one more.

        Raises
        ------
        UnsupportedError
            The task has no classes.
        ArgumentError
            As of `TaskSequence.append`.
        """
        if not contract.labels:
            raise UnsupportedError(
                f"task {name!r} (task.kind={contract.kind}) has no classes that could be appended to those of other "
                "tasks; start a run of its own, without continual.after"
            )
        self.sequence.append(name, contract.labels)
        return LearnedTasks({**self.contracts, name: contract})

    @cached_property
    def sequence(self) -> TaskSequence:
        """Whose columns are where."""
        sequence = TaskSequence()
        for name, contract in self.contracts.items():
            sequence = sequence.append(name, contract.labels)
        return sequence

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks' names, in order."""
        return self.sequence.names

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.sequence.num_outputs

    @cached_property
    def in_order(self) -> tuple[TaskContract, ...]:
        """The tasks' contracts."""
        return tuple(self.contracts.values())

    @cached_property
    def together(self) -> TaskContract:
        """The task of telling all K classes apart, called "task: class"; texts are read as the last task's."""
        return dataclasses.replace(self.in_order[-1], labels=self.sequence.labels, label_words=(), metric="accuracy")

    @property
    def read_alike(self) -> bool:
        """Whether a text is run forward in the same way whatever its task is, so that the task may be unknown."""
        ways = {(c.kind, c.prompt, c.max_length, c.chat_template) for c in self.in_order}
        return len(ways) == 1

    @property
    def may_be_unknown(self) -> bool:
        """Whether there are several tasks, and a text can be of any of them."""
        return self.read_alike and len(self.contracts) > 1

    def contract_of(self, name: str) -> TaskContract:
        """Return a task's contract; raises MismatchError where no task has this name."""
        return self.contracts[self.sequence.span_of(name).name]

    def columns_of(self, name: str) -> tuple[int, ...]:
        """Return the first and the last but one of a task's columns; nothing of all together, named "".

        Raises MismatchError where no task has this name.
        """
        if not name:
            return ()
        span = self.sequence.span_of(name)
        return span.start, span.stop

    def predicted(self, name: str) -> TaskContract:
        """Return what is predicted of a task: its own classes, or with "" those of all together.

        Raises
        ------
        MismatchError
            No task has this name.
        UnsupportedError
            All together, where the tasks' prompts, lengths or kinds differ.
        """
        if name:
            return self.contract_of(name)
        if not self.read_alike:
            raise UnsupportedError(
                f"the tasks {', '.join(self.names)} read texts in different ways (prompt, length or pairs), so "
                "that the task of a text must be known; name it"
            )
        return self.together

    def spread(self, targets: TargetBatch, number: int) -> TargetBatch:
        """Return a task's targets over the classes of all tasks.

        Parameters
        ----------
        targets : TargetBatch
            [B, K_t], unprotected.
        number : int
            Which task's, counted from 0.
        """
        span = self.sequence.spans[number]
        if targets.labels is not None:
            base = None if targets.base is None else span.widen(targets.base, self.num_outputs)
            return TargetBatch(None, targets.labels + span.start, base)
        assert targets.differences is not None
        labels, base = recover(targets.differences)
        hot = functional.one_hot(labels + span.start, self.num_outputs).to(base.dtype)
        return TargetBatch(hot - span.widen(base, self.num_outputs), None, None)

    def to_json(self) -> str:
        """Return the tasks as JSON."""
        return json.dumps(
            [{"name": name, "contract": json.loads(c.to_json())} for name, c in self.contracts.items()], sort_keys=True
        )

    @classmethod
    def from_json(cls, text: str) -> LearnedTasks:
        """Read `to_json` back; raises MismatchError where it is something else."""
        tasks = cls({})
        try:
            for task in json.loads(text):
                tasks = tasks.append(str(task["name"]), TaskContract.from_json(json.dumps(task["contract"])))
        except (ValueError, TypeError, LookupError, RecursionError, UnsupportedError) as error:
            raise MismatchError("the tasks of a side network are not of the form that this version reads") from error
        return tasks
