"""One small tree of exceptions; every one of them is meant to be read by a user.

The message names the value that is wrong and what to do about it. It never holds sample text, labels or
secrets: Flower carries the text of a client's exception to the server.
"""


class MobiLLMError(Exception):
    """Base of all errors that this package raises on purpose."""


class SettingsError(MobiLLMError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


class ArgumentError(MobiLLMError, ValueError):
    """A value that a function of `core` or `privacy` was given cannot be used; see `config.compatibility.settings_of`.

    Parameters
    ----------
    name : str
        The argument's.
    value : object
        What was given.
    problem : str
        What is wrong with it, as the rest of a sentence that begins with the value.
    """

    def __init__(self, name: str, value: object, problem: str) -> None:
        super().__init__(f"{name}={value!r} {problem}")
        self.name, self.value, self.problem = name, value, problem


class DataError(MobiLLMError, ValueError):
    """A data set cannot be read, or a row of it cannot be used for the task."""


class MissingColumnError(DataError):
    """A column that is named is not there.

    Parameters
    ----------
    message : str
        Without the names of other columns: in a file without a heading they are a sample.
    columns : tuple of str
        Those that are there, for the user's own terminal (`cli.output.told`).
    """

    def __init__(self, message: str, columns: tuple[str, ...]) -> None:
        super().__init__(message)
        self.columns = columns


class UnsupportedError(MobiLLMError):
    """Something that cannot be handled, with what was looked for."""


class MismatchError(MobiLLMError):
    """Two parties disagree about something that must be the same on both sides."""


class PolicyRefused(MobiLLMError):  # noqa: N818 - an event, as the others
    """A run asks a device for what the device's own policy, or its node config, does not agree to."""


class ReleaseRefused(MobiLLMError):  # noqa: N818 - the event's name in the design
    """The device declines to release a sample, to keep what it promised about its data."""


class PacketRejected(MobiLLMError):  # noqa: N818 - the event's name in the design
    """An uploaded packet broke a rule; nothing of it was kept.

    Parameters
    ----------
    rule : str
        Short kebab-case name of the broken rule, counted and reported per device.
    detail : str
        What was found and what was expected. Numbers and names of fields only.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


class CacheError(MobiLLMError):
    """The activation cache is damaged, full, or of another version."""


class CacheFull(CacheError):  # noqa: N818 - a state, not a fault
    """The cache's quota is used up; what is held stays usable."""


class InUseError(MobiLLMError):
    """A run's folder is in use by another process."""


class SumRefused(MobiLLMError):  # noqa: N818 - an outcome
    """A secure sum cannot be opened: too few devices are left, or some of them lie. Nothing of it is known."""


class RunFailed(MobiLLMError):  # noqa: N818 - an outcome, as `finished:failed` in Flower
    """A run ended without a result."""


class WeightsChanged(MobiLLMError):  # noqa: N818 - an event, as the others
    """A weights file was changed, cut short or removed while the model read its layers from it."""
