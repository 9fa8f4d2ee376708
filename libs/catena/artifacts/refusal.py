"""Why the gate says no: the reasons that programs can act upon, and the two error kinds that carry them.

A code is the kind of artifact and the reason, for example `adapter_tampered` or `base_unsafe_file`.
"""

from typing import Literal

from catena.kit.errors import Denied, Invalid

Kind = Literal["adapter", "base", "model"]
"""`model`: any file or folder that a sidecar speaks for."""

Reason = Literal[
    "unsafe_file",  # a name, link, folder or special file that has no place here
    "missing_file",
    "too_large",
    "bad_config",  # adapter_config.json or config.json
    "bad_manifest",  # catena.json
    "bad_index",  # index.json of a registry
    "bad_header",  # the safetensors header
    "bad_rank",
    "bad_tensor",  # a name, shape or type that does not fit base and configuration
    "incomplete",  # a tensor or module that should be there is not
    "not_finite",
    "base_mismatch",
    "bad_signature",  # the signature file cannot be read as one
]

Distrust = Literal["unsigned", "wrong_key", "tampered"]


class Refused(Invalid):
    """The artifact is wrong in itself; the message names the file or tensor, the value, the cure."""

    default_code = "artifact_refused"


class Untrusted(Denied):
    """Nobody whose key is known here vouches for the artifact as it is."""

    default_code = "artifact_untrusted"


def refused(kind: Kind, reason: Reason, message: str) -> Refused:
    """A refusal with the code `kind_reason`."""
    return Refused(message, code=f"{kind}_{reason}")


def untrusted(kind: Kind, reason: Distrust, message: str) -> Untrusted:
    """A refusal for want of trust, with the code `kind_reason`."""
    return Untrusted(message, code=f"{kind}_{reason}")
