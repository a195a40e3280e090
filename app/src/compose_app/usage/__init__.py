"""Usage events: queued durably, then counted once each."""
