"""From the journal to what people read: summary, error texts, job result, failed items."""
