"""Chat over a WebSocket: many sessions at once on one connection (docs/websocket.md)."""
