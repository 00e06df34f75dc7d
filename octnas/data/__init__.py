"""Images: where they come from, which of them are used, and how batches are made of them."""
