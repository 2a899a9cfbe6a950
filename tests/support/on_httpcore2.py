"""A pytest plugin that puts httpcore2, httpcore's maintained successor, in httpcore's place: the
same API, so the same tests. ``make httpcore2`` runs those of the API's side so."""

import sys

import httpcore2

__all__ = ()

sys.modules["httpcore"] = httpcore2
