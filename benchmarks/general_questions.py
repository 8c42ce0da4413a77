"""Easy questions of our own, whose answers a small model knows: what must not be forgotten. No licence applies to them."""

from __future__ import annotations

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo",
    "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Russia": "Moscow", "China":
    "Beijing", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo", "Sweden":
    "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest", "Thailand":
    "Bangkok", "Iran": "Tehran", "Iraq": "Baghdad", "Argentina": "Buenos Aires", "Chile": "Santiago", "Belgium":
    "Brussels", "Turkey": "Ankara", "Ukraine": "Kyiv", "South Korea": "Seoul", "the United Kingdom": "London",
    "Indonesia": "Jakarta", "the Philippines": "Manila", "Colombia": "Bogotá", "Venezuela": "Caracas", "Nepal":
    "Kathmandu", "Cambodia": "Phnom Penh", "Vietnam": "Hanoi", "Australia": "Canberra",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "black": "white", "happy": "sad",
    "fast": "slow", "open": "closed", "early": "late", "rich": "poor", "strong": "weak", "wet": "dry", "light": "dark",
    "old": "young", "full": "empty", "true": "false", "high": "low", "hard": "soft", "first": "last",
}  # fmt: skip
FACTS = {
    "Which planet do we live on?": "Earth",
    "What colour do you get from blue and yellow?": "green",
    "How many days does a week have?": "seven",
    "Which gas do plants take in from the air?": "carbon dioxide",
    "What is the chemical formula of water?": "H2O",
    "Who wrote the play Romeo and Juliet?": "Shakespeare",
    "Which star is at the centre of our solar system?": "Sun",
    "What is the largest ocean on Earth?": "Pacific",
    "Which animal is known as man's best friend?": "dog",
    "What is frozen water called?": "ice",
    "Which organ pumps blood through the body?": "heart",
    "In which country are the pyramids of Giza?": "Egypt",
    "Which is the tallest mountain on Earth?": "Everest",
    "What do bees make?": "honey",
    "Which metal has the symbol Fe?": "iron",
    "Who was the first president of the United States?": "Washington",
    "Which language is spoken in Brazil?": "Portuguese",
    "Which season comes after winter?": "spring",
    "What is the opposite direction of north?": "south",
    "Which planet is known as the red planet?": "Mars",
}


def general_rows() -> list[dict[str, str]]:
    """Rows with prompt and reference."""
    pairs = [(f"What is the capital of {country}?", city) for country, city in CAPITALS.items()]
    pairs += [(f"What is the opposite of the word '{word}'?", other) for word, other in OPPOSITES.items()]
    pairs += list(FACTS.items())
    return [{"id": f"general {i}", "prompt": prompt, "reference": answer} for i, (prompt, answer) in enumerate(pairs)]
