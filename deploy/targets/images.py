"""Images in the engine: the published one by its digest, and servers that settings name."""

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy import credentials, engine, oci
from deploy.targets.base import Release
from deploy.targets.lend import lend
from deploy.targets.sdk import Refused, speaking
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError
from pipeline.settings import Settings

_PULL_S = 1800
_ID = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Published:
    """A published image, as its registry has it: the manifest, and whether a container of it is a server."""

    image: oci.Image
    serves: bool

    @staticmethod
    def read(release: Release) -> "Published":
        """Looks into the registry; the model itself is not read."""
        source = oci.open_source(release.registry)
        image = oci.load(source, release.digest)
        with source.open(image.config) as stream:
            body = stream.read()
        if oci.of_bytes(body) != image.config.digest:
            raise IntegrityError(
                f"{image.config.digest} in {release.registry} is {oci.of_bytes(body)}: it was changed"
            )
        asked = oci.parse_json(body, image.config.digest).get("config") or {}
        return Published(image, bool(asked.get("Entrypoint") or asked.get("Cmd")))


class Images:
    """The images that the containers of one state folder run from; `home` names the folder."""

    def __init__(self, settings: Settings, home: str):
        self.settings = settings
        self.repository = f"tidegate-{home}/{settings.model}"

    def for_version(self, release: Release) -> str:
        """The id of the image that serves a release: its own where it is a server, else `target.server`.

        Raises SettingsError where there is neither; Refused where the engine cannot have it.
        """
        published = Published.read(release)
        if published.serves:
            return self._pulled(release, published.image)
        if not self.settings.target.server:
            raise SettingsError(
                f"v{release.number} is a data image (image.base was scratch), and target.server names no image that "
                "could serve it. Set it to NAME@sha256:DIGEST of a TF Serving image, or to the id of a local image "
                "(docker build --quiet --file docker/serve.Dockerfile …), or set image.base to a serving image."
            )
        return self.named("target.server", self.settings.target.server)

    def named(self, setting: str, reference: str) -> str:
        """The id of an image that settings name by digest (pulled if it is not here) or by the id of a local one."""
        found = _inspect(reference)
        if found:
            return found["Id"]
        if _ID.fullmatch(reference):
            raise ProgramFailed(
                f"{setting}: the engine has no image {reference}. Build it (docker build --quiet prints its id), "
                "or name an image of a registry, NAME@sha256:DIGEST."
            )
        self._pull(reference, setting)
        return self._held(reference, setting)["Id"]

    def sweep(self, known: Collection[str]) -> None:
        """Takes the names off images that were lent to the engine, unless their digest is `known`."""
        for reference in _lent(self.repository.partition("/")[0]):
            if reference.partition("@")[2] not in known:
                with contextlib.suppress(Refused), speaking(f"remove image {reference}") as client:
                    client.images.remove(reference)

    def _pulled(self, release: Release, image: oci.Image) -> str:
        """The id of the published image; without a pull where its configuration, so all of its bytes, is there."""
        found = _inspect(image.config.digest)
        if found is None:
            with self._source(release, image) as reference:
                self._pull(reference, f"v{release.number}")
                found = self._held(reference, f"v{release.number}")
        if found["Id"] not in (image.config.digest, image.digest):
            raise IntegrityError(
                f"the engine has {found['Id']} under {image.digest}, whose configuration is {image.config.digest}"
            )
        return found["Id"]

    @contextlib.contextmanager
    def _source(self, release: Release, image: oci.Image) -> Iterator[str]:
        """The reference that the engine can pull an image by, while the block lasts."""
        if release.registry.startswith("oci:"):
            layout = oci.Layout(Path(release.registry.removeprefix("oci:")))
            with lend(layout, image, self.repository) as reference:
                yield reference
        else:
            yield f"{release.registry}@{image.digest}"

    def _pull(self, reference: str, what: str) -> None:
        name, _, digest = reference.partition("@")
        first = name.partition("/")[0]
        host = (
            first if "/" in name and ("." in first or ":" in first or first == "localhost") else "docker.io"
        )
        login = credentials.login_for(host)
        auth = {"username": login.user, "password": login.password} if login else {}
        try:
            with speaking(f"pull {reference}", _PULL_S) as client:
                # A stream, so that a slow pull is not taken for a hanging engine. An error comes within it, too.
                for said in client.api.pull(name, tag=digest, stream=True, decode=True, auth_config=auth):
                    if "error" in said:
                        raise Refused(f"pull {reference}", said["error"])
        except Refused as error:
            raise ProgramFailed(f"{what}: {error}. Is it there, and may {_whom(login)} read it?") from error

    def _held(self, reference: str, what: str) -> dict:
        """What the engine has under this digest, and nothing else."""
        found = _inspect(reference)
        digest = reference.partition("@")[2]
        if not found or not any(one.endswith(f"@{digest}") for one in found.get("RepoDigests") or ()):
            raise IntegrityError(
                f"{what}: the engine pulled {reference}, and does not have it under that digest"
            )
        return found


def _inspect(reference: str) -> dict | None:
    status, said = engine.ask("GET", f"/images/{reference}/json")
    if status == 404:
        return None
    if status != 200:
        raise engine.silent(f"it answered {status} when asked for image {reference}: {json.dumps(said)}")
    return said


def _lent(name: str) -> list[str]:
    """References of images that were pulled from a layout of this state folder."""
    status, said = engine.ask("GET", "/images/json?digests=1")
    references = [one for image in (said if status == 200 else ()) for one in image.get("RepoDigests") or ()]
    return [one for one in references if re.match(rf"127\.0\.0\.1:\d+/{re.escape(name)}/", one)]


def _whom(login: credentials.Login | None) -> str:
    return (
        f"{login.user} (Docker's configuration)"
        if login
        else "anybody (Docker's configuration has no login for it)"
    )
