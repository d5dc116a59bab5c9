"""Attaches signed records, and a signature of the model itself, to the image in the registry.

So whoever has the image alone can verify it, with cosign or OpenSSF model-signing. The store stays the place that
policy and verify read: what is attached can be taken off by whoever may push, and nothing is let in or kept out by it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.child import function
from pipeline.errors import TidegateError
from pipeline.execution import Paths
from pipeline.keys import Signer


def attach(registry: str, image: str, envelopes: Sequence[bytes], paths: Paths) -> None:
    """Attaches records to an image. What cannot be attached now is said, and attached when the stage runs again."""
    try:
        function("deploy.attest.attach")(registry, image, envelopes, _say, root=paths.root, state=paths.state)
    except TidegateError as error:
        _say(f"! the evidence could not be attached to {image[:19]} in {registry}: {error}")


SBOMS: Mapping[str, str] = {
    "sbom.cdx.json": "application/vnd.cyclonedx+json",
    "sbom.spdx.json": "application/spdx+json",
}
"""What of a scan's report is attached as it is, with its media type."""


def attach_sboms(registry: str, image: str, report: Path, paths: Paths) -> None:
    """Attaches the SBOMs in a scan's report to its image, for tools that look for one there."""
    documents = [(name, kind, (report / name).read_bytes()) for name, kind in SBOMS.items()]
    try:
        function("deploy.attest.attach_documents")(
            registry, image, documents, _say, root=paths.root, state=paths.state
        )
    except TidegateError as error:
        _say(f"! the SBOMs could not be attached to {image[:19]} in {registry}: {error}")


def sign_model(registry: str, image: str, folder: Path, signer: Signer, paths: Paths) -> None:
    """Attaches an OpenSSF signature of the SavedModel in `folder`, unless the image has one already."""
    places: Mapping = {"root": paths.root}
    try:
        predicate = function("deploy.model_signature.PREDICATE")
        if function("deploy.attest.fetch_bundles")(registry, image, predicate, **places):
            return
        signature = function("deploy.model_signature.sign")(folder, signer.pem)
        function("deploy.model_signature.attach")(
            registry, image, signature, _say, **places, state=paths.state
        )
    except TidegateError as error:
        _say(f"! the model's own signature could not be attached to {image[:19]}: {error}")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
