"""The tree of errors, and the exit code of each.

    MergeEngineError                exit 1
    ├── PlanError                   exit 2    the plan is wrong: file:line:column: message
    ├── CheckpointError             exit 3    an input cannot be found, read, or does not fit
    │   └── InputChangedError       exit 3    an input changed while it was being read
    ├── ResourceError               exit 4    memory, disk or device do not suffice
    ├── OutputError                 exit 5    the output cannot be written or may not be replaced
    │   └── OutputBusyError         exit 6    another run is writing this output
    ├── VerificationError           exit 7    an output or a lock is not what it claims to be
    ├── StepError                   exit 8    a step of a chain failed: its command, or what it left
    │   └── AwaitedError            exit 9    a chain waits for a step that is done elsewhere
    └── Interrupted                 exit 130  stopped by the user; the next run goes on

Every message is one clear text for the person who typed the command: it names the file,
line or tensor, says what was expected, and the way out. Programming mistakes are never
of this tree.
"""


class MergeEngineError(Exception):
    """Base of everything mergeengine raises on purpose."""

    exit_code = 1


class PlanError(MergeEngineError):
    """The plan is not valid; the message is one or more ``file:line:column: message`` texts."""

    exit_code = 2


class CheckpointError(MergeEngineError):
    """An input checkpoint is missing, malformed, or does not fit the others."""

    exit_code = 3


class InputChangedError(CheckpointError):
    """An input file changed (size, time, inode) while the run was reading it."""


class ResourceError(MergeEngineError):
    """What was asked for does not fit: memory, disk space, or no such device."""

    exit_code = 4


class OutputError(MergeEngineError):
    """The output cannot be written, or an existing one may not be replaced."""

    exit_code = 5


class OutputBusyError(OutputError):
    """Another run holds the lock of this output."""

    exit_code = 6


class VerificationError(MergeEngineError):
    """An output differs from its manifest, or a lock from its plan."""

    exit_code = 7


class StepError(MergeEngineError):
    """A step of a chain failed: its command ended with another code than 0, or left no model."""

    exit_code = 8


class AwaitedError(StepError):
    """A chain cannot go on before a step is done that is done elsewhere."""

    exit_code = 9


class Interrupted(MergeEngineError):
    """The user stopped the run; finished work is kept in the journal."""

    exit_code = 130
