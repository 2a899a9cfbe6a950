"""Who may send a request now: keys, rates, queue, the account's quota."""
