"""Everything hybridlab raises on purpose.

::

    HybridlabError                exit status 4   root; a step failed
    ├── BadInput                  2   params, command line or environment are wrong; nothing was changed
    │   ├── ParamsError           2   a params file or an override does not fit the schema
    │   ├── LabNotRunning         2   site lab, and no lab answers
    │   ├── Locked                2   another run holds the cluster's lock
    │   ├── StrictFindings        1   strict, and something could not be carried over
    │   └── SchemaTooNew          2   a state file was written by a newer hybridlab
    ├── GateClosed                3   the plan has no approval, or changed since
    ├── StepFailed                4   an action failed; the ledger names the step
    ├── VerifyFailed              4   everything was applied, and looking again disagrees
    ├── DriverError               4   an outside system refused or broke
    │   ├── Unreachable           4   no connection, or it broke: the outcome of a request may be unknown
    │   ├── Refused               4   it answered, and the answer is no (status, code, message)
    │   │   ├── NotFound          4
    │   │   ├── Conflict          4   exists already, in use, or changed meanwhile
    │   │   ├── AuthFailed        4   who we are was not believed
    │   │   ├── TooManyRequests   4
    │   │   ├── OutOfCapacity     4   no host for this shape now
    │   │   └── LimitReached      4   a service limit or quota
    │   └── CommandFailed         4   a command on a host ended with a non-zero status
    ├── DeadlineExceeded          5   waited as long as allowed
    └── Interrupted               6   Ctrl-C, SIGTERM or a lost kernel

Every error says what failed, on what, why (what the system answered) and what to try next.
"""

from __future__ import annotations


class HybridlabError(Exception):
    """Root of all errors raised on purpose.

    ``what`` failed on ``where``; ``why`` is what the system answered; ``next_move`` is what to try.
    """

    exit_code = 4

    def __init__(self, what: str, *, where: str = "", why: str = "", next_move: str = "") -> None:
        self.what = what
        self.where = where
        self.why = why
        self.next_move = next_move
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" ({self.where})"
        if self.why:
            text += f": {self.why}"
        if self.next_move:
            text += f"\n  next: {self.next_move}"
        return text


class BadInput(HybridlabError):
    exit_code = 2


class ParamsError(BadInput):
    pass


class LabNotRunning(BadInput):
    pass


class Locked(BadInput):
    pass


class SchemaTooNew(BadInput):
    pass


class StrictFindings(BadInput):
    """A plan is refused only because of what counts under strict: the same status as ``--strict`` ends with."""

    exit_code = 1


class GateClosed(HybridlabError):
    exit_code = 3


class StepFailed(HybridlabError):
    pass


class VerifyFailed(HybridlabError):
    pass


class DriverError(HybridlabError):
    pass


class Unreachable(DriverError):
    pass


class Refused(DriverError):
    """The system answered no: its ``status`` (HTTP or equivalent) and ``code``, both as it gave them."""

    def __init__(
        self,
        what: str,
        *,
        status: int = 0,
        code: str = "",
        where: str = "",
        why: str = "",
        next_move: str = "",
    ) -> None:
        self.status = status
        self.code = code
        super().__init__(what, where=where, why=why, next_move=next_move)


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class AuthFailed(Refused):
    pass


class TooManyRequests(Refused):
    pass


class OutOfCapacity(Refused):
    pass


class LimitReached(Refused):
    pass


class CommandFailed(DriverError):
    """A command on a host ended with ``exit_status`` != 0; ``stderr`` is its last kilobyte."""

    def __init__(
        self,
        what: str,
        *,
        exit_status: int,
        stderr: str = "",
        where: str = "",
        next_move: str = "",
    ) -> None:
        self.exit_status = exit_status
        self.stderr = stderr[-1024:]
        why = f"exit status {exit_status}" + (f": {self.stderr.strip()}" if self.stderr.strip() else "")
        super().__init__(what, where=where, why=why, next_move=next_move)


class DeadlineExceeded(HybridlabError):
    exit_code = 5


class Interrupted(HybridlabError):
    exit_code = 6
