"""The page of `positron report`: its data, charts and HTML."""
