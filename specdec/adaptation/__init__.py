"""Online adaptation: a drafter that learns from finished rows while it serves, where that is expected to pay."""
