"""Draft heads: folders of trained heads in published formats, and the drafters that draft with them in batches."""
