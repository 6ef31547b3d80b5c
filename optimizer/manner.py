"""Does a text press, shame or frighten, or say that something runs out? However the words are dressed up."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

Complaint = tuple[str, str]
"""A problem and its mend."""

_YOU_ARE = r"(?:you are|you're|youre)"
_DO_NOT = r"(?:do not|don't|dont)"
_HAVE_NOT = r"(?:have not|haven't|havent|have you not|did not|didn't|didnt)"

REFUSED: dict[str, tuple[str, ...]] = {
    "presses": (
        "last[- ](?:chance|call|warning|opportunity)s?",
        "final (?:call|offer|reminder|notice|warning|hours?|days?|chance|countdown)",
        "act (?:now|fast|today|quickly|immediately|at once|soon)",
        "hurry(?: up)?",
        "now or never",
        "limited[- ]time",
        "limited (?:offer|deal)s?",
        "running out",
        "(?:before it is|before it's|not|be) too late",
        "before (?:it is|it's|they are|they're) (?:all )?gone",
        "urgent(?:ly)?",
        "while (?:stocks?|suppl(?:y|ies)) lasts?",
        "expir(?:es?|ing) (?:soon|today|tonight|tomorrow|in (?:an?|\\d+) (?:minutes?|hours?))",
        "only (?:today|now|hours|minutes)",
        "(?:today|tonight|one day|24 hours|24h) only",
        "\\d+ (?:hours?|minutes?|seconds?) (?:left|remain(?:ing)?)",
        "(?:only|just) \\d+ days? (?:left|remain(?:ing)?)",
        f"{_DO_NOT} (?:wait|delay|hesitate|think twice)",
        "what are you waiting for",
        "(?:the )?clock is ticking",
        "(?:the )?countdown (?:is|has)",
        "(?<!no )deadlines?",
        "once[- ]in[- ]a[- ]lifetime",
        "(?:will|won't) (?:never|ever|not) (?:come back|be back|be repeated|see (?:this|it|such))",
        "(?:prices?|cost) (?:goes|go|rises?|will rise|will go) (?:up )?(?:today|tonight|tomorrow|soon)",
        "(?:buy|order|pay) now or",
        "before midnight",
        "use it or lose it",
        "or else",
    ),
    "plays on the fear of missing out": (
        "miss(?:ing)?[- ](?:out|it|this)",
        f"(?:{_DO_NOT}|never|cannot|can't|cant) (?:afford to )?miss",
        "can't[- ]miss",
        "fomo",
        "left (?:behind|out)",
        "fall(?:ing|en)? behind",
        "every(?:one|body) else",
        "every(?:one|body)(?:'s| is| has) (?:already )?(?:doing|joined|joining|upgraded|in)",
        "all (?:of )?your friends",
        "(?:every(?:one|body)|friends|people|members|customers|users|others) (?:have |has |are |is )?(?:all )?already",
        f"{_YOU_ARE} the (?:only|last) one",
        "(?:others|they|friends) are (?:all )?ahead of you",
        f"{_DO_NOT} be the last",
        "(?:will|would|'ll|'d|to) be sorry",
        "regret(?:s|ted|ting)?",
        "(?:lose|losing) (?:your|it|everything|all|that)",
        "(?:streak|progress|points|rewards?) (?:will|is going to|'ll) (?:die|be lost|be deleted|vanish|be gone)",
        "(?:we will|we'll|will be) delet(?:e|ed)",
        "(?:account|membership|profile|place|spot) (?:will be|is being) (?:closed|deleted|suspended|cancel+ed|lost)",
        "throw(?:ing)? (?:away|it all away)",
    ),
    "shames": (
        "asham(?:ed|ing)",
        "sham(?:e|ed|eful|efully|ing)",
        "guilt(?:y|ily)?(?![- ]free)",
        "embarrass(?:ed|ing|ment)?",
        "laz(?:y|ier|iest|iness|ybones)",
        "slack(?:ers?|ing)",
        "couch[- ]potato(?:es)?",
        "off (?:the|your|that) (?:couch|sofa)",
        "quitters?",
        f"{_DO_NOT} (?:quit|be (?:so |too )?weak|chicken out)",
        "losers?",
        "stupid(?:ity|ly)?",
        "idiots?",
        "fool(?:s|ish)?",
        "pathetic(?:ally)?",
        "worthless",
        "weaklings?",
        f"(?:{_YOU_ARE}|are you|too) (?:\\w+ )?(?:weak|fat|unfit|overweight)",
        "(?:beach|summer)[- ]body",
        "(?:lose|shed) (?:that|your|the) (?:belly|gut|fat|flab)",
        "no pain,? no gain",
        "real (?:men|women)",
        "(?:no|no more|stop making|enough|without) excuses?",
        "excuses",
        "not good enough",
        "disappoint(?:s|ed|ing|ment)?",
        "fail(?:ed|ing|ure|s)?(?!-safe)",
        "(?:you|you've|you have) (?:gave|given) up",
        "let(?:ting)? (?:us|me|them|him|her|yourself|your \\w+) down",
        "you owe",
        "you (?:promised|broke)",
        "broke(?:n)? (?:your|a|the) promise",
        "we(?: have|'ve)? (?:all )?miss(?:ed)? you",
        "(?:we|i|coach|team|trainer|owl)(?: is| are| am|'re|'m|'s) (?:so |very )?(?:sad|crying|hurt|upset|worried)",
        "heartbroken",
        "(?:is|are|'re) counting on you",
        "(?:expects?|expected) (?:you|more|better)",
        "where have you been",
        f"still {_HAVE_NOT}",
        f"(?:you|why) {_HAVE_NOT}",
        "why have you not",
        "be a stranger",
        "if you (?:really |truly )?(?:cared?|loved?)",
        "(?:family|children|kids) deserves? (?:better|more)",
        "think of your (?:children|family|kids)",
        "wast(?:e|ed|ing) (?:your|it|another|any more|this|the)",
        "we(?: are|'re) watching you",
    ),
    "promises what nobody can keep": (
        "guaranteed? (?:results?|success|weight loss)",
        "(?:results?|success) (?:is|are )?guaranteed",
        "100 ?% (?:guaranteed|risk[- ]free)",
        "no[- ]risk",
        "risk[- ]free",
        "(?:you have|you've|you) (?:just )?won",
        "you have been (?:selected|chosen)",
    ),
}
"""What no message may do, and the phrases that do it, as regular expressions of whole words."""

BOSSY = r"you (?:must|have to|need to|should|ought to)"
"""What is not refused, and better said as an offer."""

SCARCITY = (
    r"only (?:\d+|an?|one|two|three|a few|few) (?:\w+ )?(?:left|seats?|places?|spots?|remain(?:s|ing)?)",
    r"(?:almost|nearly) (?:gone|sold out|full)",
    r"(?:a )?(?:last )?few left",
    r"last (?:few|ones|pieces?|seats?|places?|spots?|items?)",
    r"(?:sell(?:s|ing)?|going|go) (?:out )?(?:fast|out)",
    r"limited (?:edition|number|stock|places|seats|supply)",
    r"(?:ends?|closes?|over) (?:soon|today|tonight|tomorrow|at midnight|in (?:an?|\d+) (?:minutes?|hours?))",
    r"last days?(?! of your)",
    r"last \d+(?! (?:days?|weeks?|months?|years?|hours?|minutes?|times?|workouts?)\b)",
)
"""Claims that something runs out: allowed only where the incentive is declared `scarce`, and so is seldom used."""

_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u0131\u03bf\u03b1\u03b5\u03b9\u03c1\u03c5"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0391\u0392\u0395\u0396\u0397\u0399"
    "\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u2018\u2019\u02bc\u2032\u00b4`\u201b\u2010\u2011\u2012\u2013\u2212",
    "aeopcyxijsdhioaeipuABEKMHOPCTYXIABEZHIKMNOPTYX'''''''-----",
)
"""Letters of other alphabets that look like Latin ones, and the ways to write an apostrophe and a hyphen."""

_FIGURES = str.maketrans("013457@$!|", "oieastasil")
_HIDDEN = re.compile(r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_SPREAD = re.compile(r"(?<![\w'])[^\W\d_]([. *_-]{1,2})[^\W\d_](?:\1[^\W\d_]){2,}(?![^\W_])")
_FIGURED = re.compile(r"(?<!\w)(?:[^\W\d_]|[@$])[\w@$!|]*[^\W\d_]")


def plain(text: str) -> str:
    """Return what a reader sees, in plain letters: without disguises by signs, look-alikes or hidden characters.

    >>> plain("L\u0430\u200bst\u00a0ch\u00e1nce, d\u00f2n\u2019t m.i.s.s it: hurrrr\u0443 N0W")
    "Last chance, don't miss it: hurry NoW"
    """
    text = unicodedata.normalize("NFKC", _HIDDEN.sub("", text)).translate(_ALIKE)
    text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    text = _SPREAD.sub(lambda m: re.sub(r"[^\w]|_", "", m[0]), text)
    text = _FIGURED.sub(lambda m: m[0].translate(_FIGURES), text)
    text = re.sub(r"([^\W\d_])\1{2,}", r"\1\1", text)
    return re.sub(r"\s+", " ", text)


def pressing(text: str, *, also: Sequence[str] = ()) -> Iterator[Complaint]:
    """Yield what is wrong with the manner of a text: phrases that press, shame or frighten, and the program's own.

    >>> list(pressing("Hurry, the sale is on"))[0][0]
    'says "Hurry", which presses'
    """
    said = plain(text)
    for does, phrases in REFUSED.items():
        for match in _whole(phrases, said):
            yield f'says "{match[0]}", which {does}', "say what there is and leave the choice to the reader"
    for phrase in also:
        words = r"\s+".join(re.escape(word) for word in plain(phrase).split())
        for match in re.finditer(rf"(?<!\w){words}(?!\w)", said, re.IGNORECASE) if words else ():
            yield f'says "{match[0]}", which guardrails.refused_phrases rules out', "say it in other words"


def scarcity(text: str) -> str | None:
    """Return the first claim in a text that something runs out, or None.

    >>> scarcity("There are ONLY 3 left"), scarcity("Your last 30 days")
    ('ONLY 3 left', None)
    """
    return next((match[0] for match in _whole(SCARCITY, plain(text))), None)


def _whole(phrases: Sequence[str], said: str) -> Iterator[re.Match[str]]:
    return re.finditer(rf"\b(?:{'|'.join(phrases)})\b", said, re.IGNORECASE)


def loud(text: str) -> Iterator[Complaint]:
    """Yield what is loud about a text: orders, words in capitals, several exclamation marks.

    >>> [problem for problem, _ in loud("You MUST see this")]
    ['says "You MUST", which orders about', 'shouts "MUST"']
    """
    said = plain(text)
    if match := re.search(rf"\b{BOSSY}\b", said, re.IGNORECASE):
        yield f'says "{match[0]}", which orders about', "offer it: the choice is the reader's"
    if shout := re.search(r"\b[A-Z]{4,}\b", said):
        yield f'shouts "{shout[0]}"', "write it in small letters"
    if marks := re.search(r"!\s*!|[?!]{3,}", unicodedata.normalize("NFKC", text)):
        yield f'shouts "{marks[0]}"', "one exclamation mark is plenty"
