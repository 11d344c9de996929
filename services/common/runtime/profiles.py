"""The device profiles of this release, read from schemas/profiles."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import yaml

import schemas
from services.common.kernel.errors import InvalidInput
from services.common.kernel.profile_documents import parse_profile
from services.common.kernel.profiles import Profile
from services.common.kernel.reasons import Reason

DIRECTORY = Path(schemas.__file__).parent / "profiles"


def load_profiles(directory: Path) -> Mapping[str, Profile]:
    """Return name → profile of every YAML file there. Raises InvalidInput for the first bad one."""
    found: dict[str, Profile] = {}
    for path in sorted(directory.glob("*.yaml")):
        try:
            profile = parse_profile(yaml.safe_load(path.read_text("utf-8")))
        except (InvalidInput, yaml.YAMLError) as wrong:
            raise InvalidInput(Reason.INVALID_ARGUMENT, f"{path.name}: {wrong}") from wrong
        if profile.name != path.stem:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"{path.name}: its name is {profile.name!r}; file and profile must have one name",
            )
        found[profile.name] = profile
    return MappingProxyType(found)


@cache
def profiles() -> Mapping[str, Profile]:
    """Return name → profile of this release."""
    return load_profiles(DIRECTORY)
