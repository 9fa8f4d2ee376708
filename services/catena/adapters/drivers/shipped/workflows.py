"""Which adapters each workflow begins with."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from catena.adapters.drivers import shipped
from catena.kit.errors import Invalid

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}\Z")]


def read_workflows(own: str = "") -> Mapping[str, Sequence[str]]:
    """The sets by workflow. Raises Invalid, naming the place, when the file is no mapping of lists of names."""
    try:
        return msgspec.yaml.decode(shipped.read("workflows.yaml", own), type=dict[str, list[Name]])
    except msgspec.MsgspecError as error:
        raise Invalid(
            f"{own or 'workflows.yaml'}: {error}; write workflow: [adapter, ...]", code="bad_config"
        ) from error
