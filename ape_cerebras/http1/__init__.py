"""HTTP/1.1 on bytes: the strict checks around h11, without I/O.

The walk: ``request_head`` checks a client's head, and ``body`` the chunks of its body, before h11
reads them; ``response_head`` checks upstream's head before httpcore gets it, and ``body`` reads the
body behind it. ``messages`` holds the vocabulary of all of them.

The rule: plain functions and small readers over bytes. A caller feeds the bytes that arrived and
gets values, or a ProxyError.

They are guards: they reject what h11 is too lenient about, on the raw bytes. h11 reads what they
let through, within httpcore where upstream sends it. Tests hold that both together accept what a
strict parser accepts, and read it alike. Only a response's body is read here.
"""
