"""Made-up labelled sentences: TREC questions, customers' messages, commands to an assistant."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from tools.sample_data.prose import draw_words, fill

TREC: dict[str, Sequence[str]] = {
    "ABBR:abb": ("What is the abbreviation of the {sport} union of {near} ?",),
    "ABBR:exp": ("What does the {near} {small} stand for ?",),
    "DESC:def": ("What is the {thing} of {near} ?", "What are {goods} of {far} ?"),
    "DESC:desc": ("What is the {river} near {near} like in {season} ?",),
    "DESC:manner": (
        "How do you clean a {colour} {thing} ?",
        "How did {person} cross the {river} ?",
    ),
    "DESC:reason": ("Why did {person} leave {near} ?", "Why is the {thing} of {far} {colour} ?"),
    "ENTY:animal": ("What animal lives by the {river} near {near} ?",),
    "ENTY:body": ("What part of the body did {person} break in {year} ?",),
    "ENTY:color": ("What colour is the flag of {near} ?",),
    "ENTY:cremat": ("What book did {person} write about {near} ?",),
    "ENTY:currency": ("What coins are used in {near} ?",),
    "ENTY:dismed": ("What illness did {person} have in {year} ?",),
    "ENTY:event": ("What festival does {near} hold in {month} ?",),
    "ENTY:food": ("What food do they serve in {near} in {season} ?",),
    "ENTY:instru": ("What instrument did {person} play ?",),
    "ENTY:lang": ("What language is spoken in {near} ?",),
    "ENTY:letter": ("What letter is missing on the gate of {near} ?",),
    "ENTY:other": ("What did {person} hide in the {place} ?",),
    "ENTY:plant": ("What tree grows beside the {river} at {near} ?",),
    "ENTY:product": ("What did the firm of {person} make ?",),
    "ENTY:religion": ("What faith did {person} have ?",),
    "ENTY:sport": ("What game was first played in {near} ?",),
    "ENTY:substance": ("What are the hills of {near} made of ?",),
    "ENTY:symbol": ("What sign stands for the town of {near} ?",),
    "ENTY:techmeth": ("What method did {person} use to print maps ?",),
    "ENTY:termeq": ("What is another word for a {thing} in {near} ?",),
    "ENTY:veh": ("What ship sank off {near} in {year} ?",),
    "ENTY:word": ("What word did {person} invent ?",),
    "HUM:desc": ("Who was {person} ?",),
    "HUM:gr": ("What club won the {sport} cup of {near} in {year} ?",),
    "HUM:ind": ("Who built the {place} of {near} ?", "Who was the first {job} of {far} ?"),
    "HUM:title": ("What was the title of {person} in {near} ?",),
    "LOC:city": ("What town lies {side} of {near} ?", "What town did {person} found ?"),
    "LOC:country": ("What country is {near} in ?",),
    "LOC:mount": ("What mountain can be seen from {near} ?",),
    "LOC:other": ("Where is the {place} of {near} ?", "Where was {person} born ?"),
    "LOC:state": ("What province does the {river} leave at {near} ?",),
    "NUM:code": ("What is the dialling code of {near} ?",),
    "NUM:count": ("How many {people} live in {near} ?", "How many maps did {person} draw ?"),
    "NUM:date": ("When was {near} founded ?", "When did {person} die ?"),
    "NUM:dist": ("How far is it from {near} to {far} ?",),
    "NUM:money": ("How much does a {thing} cost in {near} ?",),
    "NUM:ord": ("What chapter of the book of {person} is about {near} ?",),
    "NUM:other": ("What is the size of the {sport} field of {near} ?",),
    "NUM:perc": ("What share of {near} is covered by the {river} ?",),
    "NUM:period": ("How long did {person} live in {near} ?",),
    "NUM:speed": ("How fast does the tram of {near} go ?",),
    "NUM:temp": ("How cold is {near} in {month} ?",),
    "NUM:volsize": ("How large is the lake of {near} ?",),
    "NUM:weight": ("How heavy is the bell of {near} ?",),
}
BANKING: dict[str, Sequence[str]] = {
    "card_arrival": ("Where is my card? I ordered it in {month}", "No card after {small} weeks?"),
    "lost_or_stolen_card": ("I lost my card in {near}", "My card was stolen on a trip to {far}!"),
    "exchange_rate": ("What rate do I get for {number} crowns?", "Is the rate better in {month}?"),
    "pending_transfer": ("My transfer of {number} to {person} is still pending",),
    "top_up_failed": ("My top-up of {number} did not work", "Why was topping up {amount} refused?"),
    "change_pin": ("How can I change my PIN while I am in {near}?", "New PIN after {small} tries?"),
    "cash_withdrawal_charge": ("Why was I charged {small} for cash in {near}, and twice?",),
    "age_limit": ("My {small} year old wants an account, is that ok?",),
    "close_account": ("Please close my account by {month} {small}", "I want to leave after {year}"),
    "refund_not_showing_up": ("{person} refunded {number} but I can't see it",),
    "wrong_amount_of_cash_received": ("The machine in {near} gave me {number}, not {amount}",),
    "verify_my_identity": ("How do I prove that I am {person}?",),
}
NLU: dict[str, Sequence[str]] = {
    "alarm_set": ("wake me at {small} in {month}", "set an alarm {number} minutes from now"),
    "alarm_remove": ("cancel the alarm for {small} o'clock in {near}",),
    "audio_volume_up": ("make it louder by {number}",),
    "calendar_query": ("am i free to meet {person}", "what is on in {month} {small}"),
    "calendar_set": ("put the dinner with {person} on {month} {small}",),
    "cooking_recipe": ("how do i make {dish} for {small} guests",),
    "email_sendemail": ("send an email to {person} about {sport}",),
    "general_joke": ("tell me a joke about one {job} and two {animal}s",),
    "iot_hue_lightoff": ("switch off the lights in the {place} of {near}",),
    "lists_createoradd": ("add {number} {goods} to my list", "new list for the trip to {far}"),
    "music_likeness": ("i like this song by {person}",),
    "news_query": ("what is new in {near}", "any news about {sport} in {far}"),
    "play_music": ("play the {colour} album by {person}",),
    "play_radio": ("turn on radio {near}",),
    "qa_factoid": ("who was {person}", "how old is the {place} of {near}"),
    "takeaway_order": ("order {dish} from the {animal} in {near}",),
    "transport_ticket": ("book {small} seats by {carrier} to {far}",),
    "weather_query": ("will there be {weather} in {near}", "how is {month} in {far}"),
}


def sentences(
    kinds: Mapping[str, Sequence[str]], n: int, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """`n` different (sentence, label) pairs; the first ones go once through all labels."""
    labels, seen, made = list(kinds), set(), 0
    while made < n:
        label = labels[made] if made < len(labels) else rng.choice(labels)
        text = fill(rng.choice(kinds[label]), draw_words(rng))
        if text not in seen:
            seen.add(text)
            made += 1
            yield text, label
