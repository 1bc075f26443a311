"""Where the texts of a harvest come from, and the token ids that the model runs on."""
