"""From summary rows to what people read: tables and figures."""
