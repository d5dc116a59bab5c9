"""Copies what the patterns name into ARTIFACTS/NAME.

As in the real action, the artifact's root is the patterns' least common folder, and hidden files stay out unless asked
for.
"""

import os
import shutil
from pathlib import Path

found = sorted(Path(place) for pattern in os.environ["PATHS"].split() for place in Path().glob(pattern))
target = Path(os.environ["ARTIFACTS"]) / os.environ["NAME"]
patterns = [pattern.partition("*")[0].rstrip("/") for pattern in os.environ["PATHS"].split()]
root = Path(os.path.commonpath(patterns))
files = [
    file for place in found for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()
]
kept = [
    file
    for file in files
    if os.environ["HIDDEN"] == "true" or not any(part.startswith(".") for part in file.parts)
]
shutil.rmtree(target, ignore_errors=True)
for file in kept:
    place = target / file.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)
for folder in (target, *target.rglob("*")) if target.exists() else ():
    folder.chmod(0o777 if folder.is_dir() else 0o666)
print(f"{target.name}: {len(kept)} files")
