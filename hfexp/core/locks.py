"""A lock on a file that several processes, and perhaps several users, share."""

from filelock import FileLock

from hfexp.core.errors import ConfigError


class SharedLock(FileLock):
    """A file lock whose error says what to do if the lock file belongs to another user.

    Raises:
        ConfigError: raised by `acquire` and `with` if this user may not write the lock file.
    """

    def _acquire(self) -> None:
        try:
            super()._acquire()
        except PermissionError as error:
            raise ConfigError(
                f"{self.lock_file} can't be written: another user created it; set output_dir "
                "to a directory of your own"
            ) from error
