"""The ahead-of-time store: the only wall between building and serving."""

from rlx_ray.store.aot import AotStore, check_shared, open_store
from rlx_ray.store.base import Entry, Hit, Lookup, Miss, Store, VerifyRow
from rlx_ray.store.cache import HostCache
from rlx_ray.store.tiered import Fetched, FetchedWeights, TieredStore

__all__ = [
    "AotStore",
    "Entry",
    "Fetched",
    "FetchedWeights",
    "Hit",
    "HostCache",
    "Lookup",
    "Miss",
    "Store",
    "TieredStore",
    "VerifyRow",
    "check_shared",
    "open_store",
]
