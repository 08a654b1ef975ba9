"""Files on servers: HTTP, the hub, what is kept of them."""
