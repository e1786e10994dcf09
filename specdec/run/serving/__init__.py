"""Online serving, simulated: requests arrive over time, conversations go on when their last answer is there."""
