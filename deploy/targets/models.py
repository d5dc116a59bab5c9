"""Models of published images, unpacked below the state folder: what local processes and containers serve."""

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from deploy.targets.base import Release, Version
from pipeline.errors import IntegrityError, ProgramFailed

Unpack = Callable[[str, str, Path], None]
_READABLE = 0o755  # a server in a container reads it as another user


class Models:
    """The folder `run/models`. `unpack` puts an image's files into a folder, by default `deploy.oci.unpack`."""

    def __init__(self, state: Path, model: str, unpack: Unpack | None = None):
        self.folder = state.resolve() / "run" / "models"
        self.model = model
        self._unpack = unpack

    def unpacked(self, release: Release) -> Path:
        """The folder for `--model_base_path`: it holds the release's number as its only version."""
        home = self.folder / f"{release.digest.removeprefix('sha256:')[:32]}.{release.number}"
        if home.is_dir():
            return home
        work = self.folder / f".{home.name}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(parents=True)
            self._fetch(release, work / "image")
            (work / "base").mkdir()
            (work / "base").chmod(_READABLE)
            _only_version(work / "image" / "models" / self.model).rename(work / "base" / str(release.number))
            (work / "base").rename(home)  # visible in one step: what is there is whole
        except OSError as error:
            raise ProgramFailed(
                f"{release.digest} could not be unpacked into {self.folder}: {error}"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return home

    def sweep(self, known: Collection[Version], everything: bool) -> None:
        """Removes models that no `known` version serves; half-unpacked ones alone unless `everything`."""
        served = {Path(version.folder).name for version in known}
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.name not in served and (everything or folder.name.startswith(".")):
                shutil.rmtree(folder, ignore_errors=True)

    def _fetch(self, release: Release, into: Path) -> None:
        if self._unpack is None:
            from deploy import oci

            self._unpack = oci.unpack
        self._unpack(release.registry, release.digest, into)


def _only_version(folder: Path) -> Path:
    versions = sorted(folder.iterdir()) if folder.is_dir() else []
    if len(versions) != 1:
        raise IntegrityError(
            f"The image holds {len(versions)} versions in models/{folder.name}, where one was expected. "
            "Run image and publish again, with the model's present name."
        )
    return versions[0]
