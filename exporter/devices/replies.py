"""What the runner answers, checked: a device is not trusted to send what it should."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

R = TypeVar("R", bound="Reply")
# What a counter of 64 bits can hold.
Count: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 64)]
# One for each model.
Counts: TypeAlias = Annotated[list[Count], Field(min_length=2, max_length=2)]


class Reply(BaseModel):
    """An answer, of these fields and types."""

    model_config = ConfigDict(extra="forbid")


class Versions(Reply):
    """Of what the runner needs."""

    onnxruntime: str
    numpy: str


class Machine(Reply):
    """See `machine.describe`."""

    python: str
    system: str
    cpu: str
    cores: int
    governors: list[str]


class Hello(Reply):
    """What there is on the device.

    Attributes:
        model: name of the board or the machine, None where it has none.
        architecture: as `platform.machine` has it.
        libc: name and version, None where it does not tell.
        cores: numbers of those that the runner may use.
        versions: of what it needs.
        machine: see `machine.describe`.
    """

    model: str | None
    architecture: str
    libc: str | None
    cores: list[Count]
    versions: Versions
    machine: Machine


class Missing(Reply):
    """What the runner needs and does not find."""

    missing: str | None
    text: str
    python: str


class Nothing(Reply):
    """Done."""


class Sent(Reply):
    """The number of a file, and its name on the device."""

    file: int
    name: str


class Opened(Reply):
    """A session: its number, name, type and shape of its inputs, names of its outputs."""

    session: int
    inputs: list[tuple[str, str, list[int | str | None]]]
    outputs: list[str]


class Ran(Reply):
    """Name, type and shape of every array behind it."""

    arrays: list[tuple[str, str, list[Count]]]


class Kept(Reply):
    """The number of feeds."""

    feeds: int


class Timed(Reply):
    """One run."""

    nanoseconds: Count


class Conditions(Reply):
    """See `sensors.conditions`."""

    governors: list[str] | None
    clocks_mhz: list[FiniteFloat] | None
    limits_mhz: list[FiniteFloat] | None
    temperatures: dict[str, FiniteFloat] | None
    throttle_events: int | None
    throttled: bool | None


class Round(Reply):
    """One round: nanoseconds to open and to run first, by session; of the runs, by turn and session."""

    start: list[list[Count]]
    turns: list[list[Count]]
    conditions: Conditions


class Trace(Reply):
    """Sizes of the profile and of the graph behind it."""

    sizes: tuple[Count, Count]


class Footprint(Reply):
    """Bytes that a process needed."""

    bytes: int | None


class Watch(Reply):
    """How the device fares before a measurement."""

    load_average: list[FiniteFloat] | None
    conditions: Conditions


class Watched(Reply):
    """How it has fared."""

    others_busy_cores: FiniteFloat | None
    conditions: Conditions


class Energy(Reply):
    """See `energy.measure`."""

    runs: Counts | None = None
    microjoules: Counts | None = None
    of: str | None = None
    missing: str | None = None

    @model_validator(mode="after")
    def _is_measured_or_missing(self) -> Self:
        measured = (self.runs, self.microjoules, self.of)
        if measured.count(None) != (0 if self.missing is None else len(measured)):
            msg = "either runs, microjoules and of, or missing"
            raise ValueError(msg)
        return self
