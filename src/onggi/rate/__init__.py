"""People's judgement: a blind study of answers side by side, its page, its store and what it found."""
