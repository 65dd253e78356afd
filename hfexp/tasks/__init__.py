"""What differs between kinds of problems: columns, transforms, collators, metrics."""
