"""The distribution's dependencies are the lines of run.in and stack.in: one list, not two."""

from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class DependenciesFromInputs(MetadataHookInterface):
    def update(self, metadata: dict[str, object]) -> None:
        metadata["dependencies"] = self._wanted("run.in")
        metadata["optional-dependencies"] = {"stack": self._wanted("stack.in")}

    def _wanted(self, name: str) -> list[str]:
        lines = (Path(self.root) / "requirements" / name).read_text().splitlines()
        stripped = (line.split("#")[0].strip() for line in lines)
        return [line for line in stripped if line and not line.startswith("-")]
