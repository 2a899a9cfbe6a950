"""Limits on chat requests: client keys, rates, the queue, and the account's quota.

The walk: ``api_keys`` checks the client's key. ``admission`` checks the key's models and budget and
charges the request of the minute to ``token_buckets``, in this process or in Redis
(``redis_store``). Then the request waits until the account's quota allows it (``quota_pacing``) and
for a slot (``fair_queue``). Its cost is charged when it ends.

The rule: what is held is held by a context manager, and decisions are plain functions over values.
"""
