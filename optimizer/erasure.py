"""Who is to be forgotten, without naming anybody? The digest that stands for a customer on a tombstone."""

from hashlib import blake2b


def digest(key: bytes, customer_id: str) -> str:
    """Return a keyed digest of a customer's id: whoever has neither key nor id learns nothing from it.

    >>> digest(b"a key", "ada")
    '80930534da29a227fa7391661ee4b58d'
    """
    return blake2b(customer_id.encode(), digest_size=16, key=key).hexdigest()
