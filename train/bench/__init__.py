"""What the bench costs, as ratios measured side by side in one run."""
