import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = re.compile(r"\$\{(\w+):?-?([^}]*)\}")


class ComposeFile:
    """A compose file with its variables not yet replaced."""

    def __init__(self, name="docker-compose.yml"):
        self.text = (ROOT / name).read_text()
        self.content = yaml.safe_load(self.text)
        self.services = self.content["services"]
        self.variables = dict(REFERENCE.findall(self.text))

    def filled(self, value, **environment):
        """A value of the file with its variables replaced as compose does."""
        return REFERENCE.sub(lambda found: environment.get(found[1]) or found[2], str(value))

    def settings(self, name, **environment):
        """The environment of a service."""
        variables = self.services[name]["environment"]
        return {key: self.filled(value, **environment) for key, value in variables.items()}


@pytest.fixture(scope="session")
def compose():
    return ComposeFile()


@pytest.fixture(scope="session")
def apart():
    """What gives each honest worker a volume of its own."""
    return ComposeFile("docker-compose.apart.yml")
