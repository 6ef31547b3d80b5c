"""How is it written? Keys, and what is under them.

A key starts with its shard as the hash tag, so everything that one script touches is in one slot. Names of programs,
incentives and budget periods cannot contain a colon; ids of customers can contain anything, so they are preceded by
their length: no two ids share a key.
"""

from collections.abc import Iterable
from hashlib import blake2b
from zlib import crc32

import msgspec
from msgspec.structs import replace

from optimizer.customer import UNSAID, Customer, Said, Sent, new_customer
from optimizer.events import Decision, Outcome, Scalar
from optimizer.hearing import Ledger
from optimizer.program import Program

LAYOUT = 2
"""Version of everything below; a store of an older one is migrated at start, one of a newer one is refused."""


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all programs know of a customer. `consent` is None while nobody has said; `said` is why it is so."""

    consent: bool | None = None
    time_zone: str = ""
    attributes: dict[str, Scalar] = {}
    said: Said = UNSAID


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """A tombstone: everything up to `at` of the customer with this digest is to be forgotten."""

    digest: str
    at: float


Event = Decision | Outcome | Erased
KINDS: dict[bytes, type[Event]] = {b"decision": Decision, b"outcome": Outcome, b"erased": Erased}
"""The kinds of entries in the log."""

_encoder = msgspec.msgpack.Encoder()
_customer = msgspec.msgpack.Decoder(Customer)
_profile = msgspec.msgpack.Decoder(Profile)
_ledger = msgspec.msgpack.Decoder(Ledger)
_member = msgspec.msgpack.Decoder(tuple[str, str])
_sents = msgspec.msgpack.Decoder(tuple[Sent, ...])
_events = {kind: msgspec.msgpack.Decoder(shape) for kind, shape in KINDS.items()}


def shard_of(customer_id: str, shards: int) -> int:
    """Return the shard of a customer: the same on every machine, for ever.

    >>> shard_of("c-42", 1), shard_of("c-42", 256)
    (0, 53)
    """
    return crc32(customer_id.encode()) % shards if shards > 1 else 0


def customer_key(shard: int, customer_id: str) -> str:
    """Return the key of a customer's hash: `rev`, `seen`, `profile`; by program `journey:`, `released:`, `heard:`."""
    return f"{{{shard}}}:customer:{customer_id}"


def decision_key(shard: int, program: str, customer_id: str, decision_id: str) -> str:
    """Return the key of the answer to a decision.

    >>> decision_key(0, "p", "a:1", "b") == decision_key(0, "p", "a", "1:b")
    False
    """
    return f"{{{shard}}}:decision:{program}:{len(customer_id)}:{customer_id}:{decision_id}"


def customer_of_decision(key: str) -> str:
    """Return whose answer is under a key.

    >>> customer_of_decision(decision_key(0, "p", "a:1", "b:2"))
    'a:1'
    """
    length, _, rest = key.split(":", 3)[3].partition(":")
    return rest[: int(length)]


def history_key(shard: int, program: str, customer_id: str) -> str:
    """Return the key of the ids of a customer's recent decisions."""
    return f"{{{shard}}}:history:{program}:{customer_id}"


def outcome_key(shard: int, program: str, customer_id: str, outcome_id: str) -> str:
    """Return the key of an outcome's highest revision. A digest: short, and it says nothing of the customer."""
    words = (program, customer_id, outcome_id)
    text = b"".join(len(word).to_bytes(4, "big") + word for word in (w.encode() for w in words))
    return f"{{{shard}}}:outcome:{blake2b(text, digest_size=16).hexdigest()}"


def erased_key(shard: int, digest: str) -> str:
    """Return the key of when a customer was erased, for as long as word of earlier days may come in late."""
    return f"{{{shard}}}:erased:{digest}"


def shared_key(shard: int, kind: str, program: str, name: object = "") -> str:
    """Return the key of something that a shard's customers share: `events`, `control`, `budget`, `stock`, ..."""
    return f"{{{shard}}}:{kind}:{program}:{name}" if name != "" else f"{{{shard}}}:{kind}:{program}"


def watch_key(shard: int, program: str) -> str:
    """Return the key of the customers by when something falls due if they take no step."""
    return shared_key(shard, "watch", program)


def events_key(shard: int) -> str:
    """Return the key of a shard's log."""
    return f"{{{shard}}}:events"


def archiver_key(shard: int) -> str:
    """Return the key of a shard's archiver: its fence, and its plan while it has one."""
    return f"{{{shard}}}:archiver"


def lease_key(shard: int) -> str:
    """Return the key that whoever archives a shard holds."""
    return f"{{{shard}}}:lease"


def global_key(*parts: str) -> str:
    """Return a key that belongs to no customer."""
    return ":".join(("{g}", *parts))


def journey_field(program: str) -> str:
    """Return the field of a customer's place in a program."""
    return f"journey:{program}"


def released_field(program: str) -> str:
    """Return the field of the nudges that were released, in case they are shown late."""
    return f"released:{program}"


def ledger_field(program: str) -> str:
    """Return the field of the outcomes that may still be corrected."""
    return f"heard:{program}"


def programs_of(fields: Iterable[bytes]) -> list[str]:
    """Return the programs that a customer's hash knows."""
    return [f.decode().partition(":")[2] for f in fields if f.startswith(b"journey:")]


def encode(record: object) -> bytes:
    """Return any record as MessagePack."""
    return _encoder.encode(record)


def encode_journey(customer: Customer) -> bytes:
    """Return a customer without name and profile."""
    return _encoder.encode(replace(customer, customer_id="", consent=None, said=UNSAID, time_zone="", attributes={}))


def profile_of(customer: Customer) -> Profile:
    """Return what all programs share of a customer."""
    return Profile(customer.consent, customer.time_zone, customer.attributes, customer.said)


def decode_profile(data: bytes | None) -> Profile:
    """Read a profile; an absent one is empty."""
    return Profile() if data is None else _profile.decode(data)


def decode_customer(
    program: Program, customer_id: str, *, journey: bytes | None, profile: bytes | None, at: float
) -> Customer:
    """Join journey and profile; a customer without a journey starts one at `at`."""
    customer = new_customer(program, customer_id, at=at) if journey is None else _customer.decode(journey)
    known = decode_profile(profile)
    return replace(
        customer,
        customer_id=customer_id,
        consent=known.consent,
        said=known.said,
        time_zone=known.time_zone,
        attributes=known.attributes,
    )


def decode_member(data: bytes) -> tuple[str, str]:
    """Read customer_id and decision_id of a reservation that expires."""
    return _member.decode(data)


def decode_released(data: bytes | None) -> tuple[Sent, ...]:
    """Read the nudges that were released."""
    return () if data is None else _sents.decode(data)


def decode_ledger(data: bytes | None) -> Ledger:
    """Read what may still be corrected."""
    return Ledger() if data is None else _ledger.decode(data)


def decode_event(kind: bytes, payload: bytes) -> Event:
    """Read an entry of the log; ValueError if its kind is unknown."""
    if kind not in _events:
        raise ValueError(f"the log holds an entry of kind {kind!r}: expected one of {sorted(KINDS)}; upgrade")
    return _events[kind].decode(payload)
