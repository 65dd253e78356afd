"""The queue of SLURM as `squeue` shows it: every cluster has this command. `sacct` needs a database of accounts."""

import os

GONE = "GONE"
"""State of a job that `squeue` does not list any more: some minutes after its end (SLURM's `MinJobAge`)."""
FAILED = ("FAILED", "OUT_OF_MEMORY", "COMPLETED")
"""States in which a job without a result has failed, if nothing asked it to stop."""
ENDED = (*FAILED, "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", GONE)
"""States in which a job has ended; in all others it waits, runs or is being requeued."""


def squeue(line: str) -> list[str]:
    """Return the command that lists the user's jobs, also those that have just ended.

    Args:
        line: format of a line: `%i` is the job's id, `%T` its state, `%j` its name.
    """
    return ["squeue", f"--user={os.getuid()}", "--noheader", "--states=all", f"--format={line}"]
