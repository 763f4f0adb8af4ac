"""Programs that show fastvae at work; run them from the root of the repository."""
