"""From photos on a store to batches on a device."""
