"""HTTP/1.1 on bytes: strict checks of heads, bodies and framing, without I/O."""
