"""`make test-versions`: the suite in environments of other versions, and the table of what was tested."""
