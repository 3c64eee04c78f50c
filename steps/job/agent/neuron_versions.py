"""Do this node's Neuron driver and the Neuron runtime in this image work together? Asked by `pod_main` before any rank starts.

The driver is the node's, the runtime the image's. From driver 2.29 on (SDK 2.31), `nrt_init` of a runtime before 2.33 fails
(AWS's release notes of SDK 2.31's runtime): a node whose software was updated takes no pod of an older image any more, and no
second attempt changes that. The other way round, a new runtime on an old driver, AWS names no limit; it is left to the runtime.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from steps.errors import ConfigError, Problem

Version = tuple[int, ...]
STRICT_DRIVER: Version = (2, 29)
"""The first that refuses older runtimes."""
LEAST_RUNTIME: Version = (2, 33)
"""The first that it takes."""
DRIVER = "sys/module/neuron/version"
"""Of the kernel's module; a container sees it too."""
RUNTIME = "opt/aws/neuron/lib/libnrt.so.1"
"""A link to libnrt.so.<version>, of the package aws-neuronx-runtime-lib."""


def parse(text: str) -> Version:
    """`2.31.7.0` or `2.28.23.0-dd5879008` → numbers; empty where there are none."""
    found = re.match(r"\d+(\.\d+)+", text.strip())
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def refuses_older_runtimes(driver: Version) -> bool:
    """Does this driver take runtimes from `LEAST_RUNTIME` on only? Not known of an empty one."""
    return driver[:2] >= STRICT_DRIVER


@dataclass(frozen=True, slots=True)
class Versions:
    """What this pod runs on; empty where it cannot be read."""

    driver: Version
    runtime: Version

    @classmethod
    def read(cls, root: Path = Path("/")) -> Versions:
        """Of this pod. Nothing of it fails: what is not there is no reason to stop."""
        try:
            driver = parse((root / DRIVER).read_text(errors="replace"))
        except OSError:
            driver = ()
        library = (root / RUNTIME).resolve().name
        return cls(driver, parse(library.removeprefix("libnrt.so.")))

    def why_not(self) -> str:
        """Why nothing can train here, in words; empty if nothing speaks against it."""
        if not self.runtime or not refuses_older_runtimes(self.driver) or self.runtime[:2] >= LEAST_RUNTIME:
            return ""
        return (
            f"this node has Neuron driver {_words(self.driver)}, the image has Neuron runtime {_words(self.runtime)}: drivers "
            f"from {_words(STRICT_DRIVER)} on refuse runtimes before {_words(LEAST_RUNTIME)} (nrt_init fails), so no training "
            "with this image starts here, however often it is tried; use nodes with driver 2.28 or older, and hold their image "
            "(docs/install-on-hyperpod.md, section 3)"
        )


def _words(version: Version) -> str:
    return ".".join(map(str, version))


def require_pair(node: str, versions: Versions) -> None:
    """Refuse a pod that cannot start its device.

    Raises:
        ConfigError: driver and runtime do not work together.
    """
    if why := versions.why_not():
        raise ConfigError([Problem(f"cluster.image on node {node}", why)])


def has_device(root: Path = Path("/")) -> bool:
    """Was this pod given a Neuron device?"""
    return any((root / "dev").glob("neuron[0-9]*"))
