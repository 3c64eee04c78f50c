"""What a person sees of a run: the train card (live) and the evaluate card, as HTML of their own.

`chart` and `time_spent` turn values into places on a page, `train` and `evaluate` gather what a page says, `page` makes the
HTML, `metaflow_cards` hands it to Metaflow, whose card type is `card_type`. Only these two know Metaflow; nothing here decides
anything, and a training goes on if no one looks.
"""
