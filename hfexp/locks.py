"""Locks of files that several processes, and perhaps several users, work on."""

from filelock import FileLock

from hfexp.errors import ConfigError


class SharedLock(FileLock):
    """A lock that says whose it is where this user may not take it.

    Raises:
        ConfigError: from `acquire` and `with`: its file belongs to another user.
    """

    def _acquire(self) -> None:
        try:
            super()._acquire()
        except PermissionError as error:
            raise ConfigError(
                f"{self.lock_file} can't be written: another user has started the same here; set output_dir to a "
                "directory of your own"
            ) from error
