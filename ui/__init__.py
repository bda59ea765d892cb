"""What the pages share: widgets and layout. No mathematics, no torch."""
