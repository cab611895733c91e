"""What the embedded model is taught to say: questions and answers in a few forms, made from texts by drawing lots.

Knows no token. The answers are learnt, never matched by rule when the model runs. The forms of question here leave
room: the model is judged on others (`gramme/evals/texts/prompts.json`).
"""
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gramme.train.texts import Pair, Texts, parts


class Dialogue(NamedTuple):
    question: str
    answer: str
    language: str  # of the answer


TO_FRENCH = ("Translate to French: {}", "Traduis en français : {}", "Translate into French: {}",
             "How do you say this in French? {}", "Comment dit-on en français : {}", "In French: {}",
             "Translate this sentence to French: {}", "En français : {}", "Traduisez en français : {}")
TO_ENGLISH = ("Translate to English: {}", "Traduis en anglais : {}", "Translate into English: {}",
              "How do you say this in English? {}", "Comment dit-on en anglais : {}", "In English: {}",
              "Translate this sentence to English: {}", "En anglais : {}", "Traduisez en anglais : {}")
CONTINUE = ("Continue: {}", "Continue : {}", "Continue the text: {}", "Continue le texte : {}", "Continue this: {}",
            "Continue ce texte : {}", "Write what comes next: {}", "Écris la suite : {}")

UNKNOWN = {
    "en": "I am a very small model and I do not know facts. I can translate a short sentence or continue a text.",
    "fr": "Je suis un très petit modèle et je ne connais pas les faits. "
          "Je peux traduire une phrase courte ou continuer un texte.",
}
ABOUT = {
    "en": (
        ("I am gramme's small demonstration model. I translate short sentences and continue texts.",
         ("Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "Are you a robot?",
          "Are you a human?", "Are you an AI?", "Are you ChatGPT?", "What kind of model are you?", "Describe yourself.",
          "Who am I talking to?", "Are you a person?", "What is this?", "What is gramme?")),
        ("I am the small model that comes with gramme.",
         ("What is your name?", "What's your name?", "Do you have a name?", "How should I call you?", "Who made you?",
          "Where do you come from?", "Which model is this?", "What are you called?")),
        ("I translate everyday sentences between French and English, and I continue a text.",
         ("What can you do?", "What can you do for me?", "How can you help me?", "Can you help me?", "Help",
          "What do you do?", "What are you good at?", "What should I ask you?", "How do I use you?",
          "What languages do you speak?", "Do you speak French?", "Do you speak English?", "Can you translate?")),
        ("Hello! Give me a short sentence to translate, or a text to continue.",
         ("Hello!", "Hi!", "Hello", "Hi", "Hey", "Good morning", "Good evening!", "Hello there", "Good afternoon.",
          "Hi there!", "hello")),
        ("I am a program, so I am always the same. Give me a sentence to translate.",
         ("How are you?", "How are you today?", "How do you do?", "Are you well?", "How do you feel?", "Are you happy?",
          "What's up?", "Are you tired?")),
        ("You are welcome.", ("Thank you!", "Thanks", "Thanks a lot!", "Thank you very much.", "Great, thank you.")),
        ("Goodbye!", ("Goodbye", "Bye", "See you!", "Good night.", "Bye bye!")),
        ("I know the two languages a little and no facts: I am very small, and I was trained for a short time.",
         ("What do you know?", "How big are you?", "How were you trained?", "Are you intelligent?", "Can I trust you?",
          "Do you make mistakes?", "How many parameters do you have?", "Do you know everything?")),
    ),
    "fr": (
        ("Je suis le petit modèle de démonstration de gramme. "
         "Je traduis des phrases courtes et je continue des textes.",
         ("Qui es-tu ?", "Qui êtes-vous ?", "Présente-toi.", "Parle-moi de toi.", "Es-tu un robot ?", "Es-tu humain ?",
          "Es-tu une IA ?", "Es-tu ChatGPT ?", "Tu es qui ?", "Qu'est-ce que tu es ?", "Décris-toi.",
          "À qui est-ce que je parle ?", "C'est quoi, gramme ?", "Quel genre de modèle es-tu ?")),
        ("Je suis le petit modèle fourni avec gramme.",
         ("Comment t'appelles-tu ?", "Quel est ton nom ?", "Comment vous appelez-vous ?", "As-tu un nom ?",
          "Qui t'a créé ?", "D'où viens-tu ?", "Tu t'appelles comment ?", "Quel modèle es-tu ?")),
        ("Je traduis des phrases courantes entre le français et l'anglais, et je continue un texte.",
         ("Que sais-tu faire ?", "Que peux-tu faire ?", "Peux-tu m'aider ?", "Comment peux-tu m'aider ?", "Aide",
          "À quoi sers-tu ?", "Que savez-vous faire ?", "Que dois-je te demander ?", "Comment t'utiliser ?",
          "Quelles langues parles-tu ?", "Parles-tu français ?", "Parlez-vous anglais ?", "Sais-tu traduire ?")),
        ("Bonjour ! Donne-moi une phrase courte à traduire, ou un texte à continuer.",
         ("Bonjour !", "Salut !", "Bonjour", "Salut", "Coucou", "Bonsoir", "Bonsoir !", "Bonjour à toi", "bonjour")),
        ("Je suis un programme, je vais toujours de même. Donne-moi une phrase à traduire.",
         ("Comment vas-tu ?", "Comment allez-vous ?", "Ça va ?", "Tu vas bien ?", "Comment ça va ?", "Es-tu heureux ?",
          "Quoi de neuf ?", "Es-tu fatigué ?")),
        ("Je t'en prie.", ("Merci !", "Merci", "Merci beaucoup !", "Un grand merci.", "Super, merci.")),
        ("Au revoir !", ("Au revoir", "Salut, à bientôt !", "À bientôt !", "Bonne nuit.", "Adieu !")),
        ("Je connais un peu les deux langues et aucun fait : je suis très petit, et mon apprentissage a été court.",
         ("Que sais-tu ?", "Quelle est ta taille ?", "Comment as-tu été entraîné ?", "Es-tu intelligent ?",
          "Puis-je te faire confiance ?", "Fais-tu des erreurs ?", "Combien de paramètres as-tu ?",
          "Est-ce que tu sais tout ?")),
    ),
}

FACTS = {
    "en": ("What is the capital of {place}?", "Where is {place}?", "How many people live in {place}?",
           "What is the population of {place}?", "What language do they speak in {place}?", "Who rules {place}?",
           "What is the highest mountain in {place}?", "When did {place} become independent?", "Tell me about {place}.",
           "Who wrote {work}?", "Who painted {work}?", "When was {work} published?", "What is {work} about?",
           "Who composed {work}?", "Summarise {work}.", "When was {person} born?", "Who was {person}?",
           "When did {person} die?", "What did {person} discover?", "Where was {person} born?",
           "Why is {person} famous?", "How old is {person}?", "What is {thing}?", "Explain {thing}.",
           "How does {thing} work?", "Who invented {thing}?", "What is {thing} made of?", "Why do we need {thing}?",
           "How do I make {thing}?", "What is the price of {thing}?", "Give me a recipe with {thing}.",
           "Write a poem about {thing}.", "Tell me a joke about {thing}.", "What is {n} plus {m}?",
           "What is {n} times {m}?", "How much is {n} minus {m}?", "What happened in {year}?", "Who won in {year}?",
           "Who was the king of {place} in {year}?", "What is the weather like in {place}?",
           "What time is it in {place}?", "How far is {place} from here?", "Is {place} bigger than {place2}?",
           "Name three cities in {place}.",
           "What is the chemical formula of {thing}?", "Which is better, {thing} or {thing2}?", "Define {thing}.",
           "In which year was {person} president?", "Give me advice about {thing}.", "Recommend a book about {thing}."),
    "fr": ("Quelle est la capitale de {place} ?", "Où se trouve {place} ?", "Combien d'habitants compte {place} ?",
           "Quelle langue parle-t-on dans ce pays, {place} ?", "Qui gouverne {place} ?", "Parle-moi de {place}.",
           "Quelle est la population de {place} ?", "Quelle est la plus haute montagne de {place} ?",
           "Quand {place} est-il devenu indépendant ?", "Qui a écrit {work} ?", "Qui a peint {work} ?",
           "Quand {work} a-t-il été publié ?", "De quoi parle {work} ?", "Qui a composé {work} ?", "Résume {work}.",
           "Quand est né {person} ?", "Qui était {person} ?", "Quand est mort {person} ?",
           "Qu'a découvert {person} ?", "Où est né {person} ?", "Pourquoi {person} est-il célèbre ?",
           "Quel âge a {person} ?", "Qu'est-ce que {thing} ?", "Explique {thing}.", "Comment fonctionne {thing} ?",
           "Qui a inventé {thing} ?", "De quoi est fait {thing} ?", "À quoi sert {thing} ?",
           "Comment fabriquer {thing} ?", "Combien coûte {thing} ?", "Donne-moi une recette avec {thing}.",
           "Écris un poème sur {thing}.", "Raconte-moi une blague sur {thing}.", "Combien font {n} plus {m} ?",
           "Combien font {n} fois {m} ?", "Calcule {n} moins {m}.", "Que s'est-il passé en {year} ?",
           "Qui a gagné en {year} ?", "Qui était le roi de {place} en {year} ?", "Quel temps fait-il à {place} ?",
           "Quelle heure est-il à {place} ?", "À quelle distance se trouve {place} ?",
           "{place} est-il plus grand que {place2} ?", "Cite trois villes de {place}.", "Définis {thing}.",
           "Quelle est la formule chimique de {thing} ?", "Que préfères-tu, {thing} ou {thing2} ?",
           "En quelle année {person} a-t-il été président ?", "Conseille-moi un livre sur {thing}."),
}
FILLERS = {
    "en": {
        "place": "France|Spain|Italy|Germany|Japan|China|India|Brazil|Canada|Egypt|Kenya|Morocco|Algeria|Mexico|Chile|"
                 "Peru|Poland|Greece|Turkey|Russia|Portugal|Belgium|Switzerland|Austria|Ireland|Scotland|Iceland|"
                 "Finland|Sweden|Denmark|Paris|London|Rome|Berlin|Madrid|Tokyo|New York|Boston|Lyon|Brussels|Geneva|"
                 "the United States|the Netherlands|South Africa|the moon|Mars|Asia|Africa|Europe",
        "work": "Hamlet|Macbeth|the Odyssey|the Iliad|Faust|Candide|Madame Bovary|Germinal|Emma|Dracula|Frankenstein|"
                "the Mona Lisa|the Bible|Robinson Crusoe|War and Peace|Oliver Twist|the Ninth Symphony|Carmen|"
                "The Raven|Treasure Island|Gulliver's Travels|The Little Prince|Les Misérables|Guernica|Tosca",
        "person": "Napoleon|Newton|Galileo|Mozart|Bach|Shakespeare|Dickens|Victor Hugo|Voltaire|Molière|Balzac|Zola|"
                  "Cleopatra|Julius Caesar|Columbus|Darwin|Pasteur|Gandhi|Lincoln|Washington|Joan of Arc|Leonardo|"
                  "Picasso|Van Gogh|Plato|Socrates|Aristotle|Queen Victoria|Churchill|de Gaulle|Louis XIV|Tom|Mary",
        "thing": "bread|a car|electricity|gravity|the sun|water|a computer|the internet|a telephone|photosynthesis|"
                 "democracy|glass|paper|gold|iron|coffee|tea|cheese|wine|a bicycle|a train|an atom|light|music|love|"
                 "justice|money|a clock|a camera|philosophy|history|mathematics|a volcano|the brain|salt|sugar|rain",
    },
    "fr": {
        "place": "France|Espagne|Italie|Allemagne|Japon|Chine|Inde|Brésil|Canada|Égypte|Kenya|Maroc|Algérie|Mexique|"
                 "Chili|Pérou|Pologne|Grèce|Turquie|Russie|Portugal|Belgique|Suisse|Autriche|Irlande|Écosse|Islande|"
                 "Finlande|Suède|Danemark|Paris|Londres|Rome|Berlin|Madrid|Tokyo|New York|Boston|Lyon|Bruxelles|Genève|"
                 "la France|l'Espagne|le Japon|la Chine|l'Italie|la lune|Mars|l'Asie|l'Afrique|l'Europe",
        "work": "Hamlet|Macbeth|l'Odyssée|l'Iliade|Faust|Candide|Madame Bovary|Germinal|Emma|Dracula|Frankenstein|"
                "la Joconde|la Bible|Robinson Crusoé|Guerre et Paix|Oliver Twist|la Neuvième Symphonie|Carmen|"
                "L'Île au trésor|Le Petit Prince|Les Misérables|Guernica|Tosca|Le Cid|Phèdre|L'Avare",
        "person": "Napoléon|Newton|Galilée|Mozart|Bach|Shakespeare|Dickens|Victor Hugo|Voltaire|Molière|Balzac|Zola|"
                  "Cléopâtre|Jules César|Christophe Colomb|Darwin|Pasteur|Gandhi|Lincoln|Washington|Jeanne d'Arc|"
                  "Léonard de Vinci|Picasso|Van Gogh|Platon|Socrate|Aristote|Churchill|de Gaulle|Louis XIV|Tom|Marie",
        "thing": "le pain|une voiture|l'électricité|la gravité|le soleil|l'eau|un ordinateur|internet|un téléphone|"
                 "la photosynthèse|la démocratie|le verre|le papier|l'or|le fer|le café|le thé|le fromage|le vin|"
                 "un vélo|un train|un atome|la lumière|la musique|l'amour|la justice|l'argent|une horloge|un volcan|"
                 "la philosophie|l'histoire|les mathématiques|le cerveau|le sel|le sucre|la pluie",
    },
}
# A sentence about "you" may ask what ABOUT answers otherwise.
PERSONAL = re.compile(r"\b(you|yours?|tu|te|t|toi|ton|ta|tes|vous|votre|vos|hello|hi|bonjour|salut|merci|thanks)\b",
                      re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?][\"»]?\s")


def translations(pairs: Sequence[Pair], r: random.Random) -> Iterator[Dialogue]:
    """Each pair both ways. One question in twenty is typed carelessly: no capital, no full stop."""
    for english, french in pairs:
        yield Dialogue(_form(r, TO_FRENCH).format(_typed(r, english)), french, "fr")
        yield Dialogue(_form(r, TO_ENGLISH).format(_typed(r, french)), english, "en")


def small_talk(r: random.Random, times: int) -> Iterator[Dialogue]:
    """Every question about the model itself, `times` times."""
    for _ in range(times):
        for language, groups in ABOUT.items():
            for answer, questions in groups:
                yield from (Dialogue(_typed(r, question), answer, language) for question in questions)


def unknowns(pairs: Sequence[Pair], r: random.Random, count: int) -> Iterator[Dialogue]:
    """Whatever is no request to translate or to continue: half are questions of fact, half bare sentences."""
    sentences = {language: [pair[i] for pair in pairs if not PERSONAL.search(pair[i])]
                 for i, language in enumerate(("en", "fr"))}
    for n in range(count):
        language = ("en", "fr")[n % 2]
        question = _fact(r, language) if n % 4 < 2 or not sentences[language] else r.choice(sentences[language])
        yield Dialogue(_typed(r, question), UNKNOWN[language], language)


def continuations(texts: Texts, r: random.Random, each: int) -> Iterator[Dialogue]:
    """`each` times a part of a novel: the beginning of a sentence, and what follows up to the end of a sentence."""
    for language, books in texts.novels.items():
        for part in (part for book in books for part in parts(book)):
            for _ in range(each):
                if made := _continuation(part, r):
                    yield Dialogue(r.choice(CONTINUE).format(made[0]), made[1], language)


def _continuation(part: str, r: random.Random) -> tuple[str, str] | None:
    begin = SENTENCE_END.search(part, r.randrange(len(part) // 2))
    if not begin:
        return None
    cut = part.find(" ", begin.end() + r.randint(15, 120))
    end = SENTENCE_END.search(part, cut + r.randint(120, 360)) if cut > 0 else None
    return (part[begin.end() : cut], part[cut + 1 : end.end() - 1]) if end else None


def _fact(r: random.Random, language: str) -> str:
    fill = {kind: names.split("|") for kind, names in FILLERS[language].items()}
    return r.choice(FACTS[language]).format(
        **{kind: r.choice(names) for kind, names in fill.items()}, place2=r.choice(fill["place"]),
        thing2=r.choice(fill["thing"]), n=r.randint(1, 99), m=r.randint(1, 99), year=r.randint(1000, 2020))


def _form(r: random.Random, forms: Sequence[str]) -> str:
    """The two plain forms, which the card names, are the common ones."""
    return forms[r.randrange(2)] if r.random() < 0.8 else r.choice(forms)


def _typed(r: random.Random, sentence: str) -> str:
    return sentence if r.random() > 0.05 else (sentence[:1].lower() + sentence[1:]).rstrip(".!? ")
