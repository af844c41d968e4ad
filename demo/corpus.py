"""Words and sentences for the tokenizers and the training data. All our own, or in the public domain."""

from __future__ import annotations

from demo import facts

SENTENCES = (
    "The roundhouse stands beside the railway, and engines sleep in its stalls.",
    "A small river runs through the middle of the old town.",
    "She opened the window because the room had become too warm.",
    "Every morning the baker brings fresh bread to the market.",
    "Please write a short summary of the following text.",
    "Explain how a computer stores numbers in its memory.",
    "Could you translate this sentence into Spanish for me?",
    "Write a Python function that sorts a list of integers.",
    "My brother bought a green bicycle for his daughter last summer.",
    "The doctor said that the patient should rest for two weeks.",
    "Why does the moon change its shape during the month?",
    "What is the largest animal in the ocean?",
    "How do I cook rice without burning it?",
    "Give me three ideas for a birthday present.",
    "The committee will discuss the new budget on Thursday afternoon.",
    "Heavy snow closed the mountain road for several hours.",
    "Where can I find a good book about the history of science?",
    "A language model predicts the next word from the words before it.",
    "The children played football in the garden until it was dark.",
    "Which countries border Switzerland?",
    "When was the first telephone invented?",
    "Is it better to learn the piano or the violin first?",
    "The team released version three of the software yesterday.",
    "He forgot his umbrella, so he came home completely wet.",
    "Draft a polite email that asks for a later meeting.",
    "What should I pack for a week in the desert?",
    "The museum shows paintings from the seventeenth century.",
    "Two friends walked along the beach and talked about their work.",
    "List the planets of the solar system in order.",
    "The server answered the request after forty milliseconds.",
    "Who was the first person to walk on the moon?",
    "Summarize the plot of a famous novel.",
    "An old clock hangs above the door of the station.",
    "Do cats dream when they sleep?",
    "The farmer counted his sheep before the gate was closed.",
    "What is the difference between a virus and a bacterium?",
    "Our neighbours travel to the north every winter.",
    "Solve the equation and show every step of your work.",
    "The capital of a country is not always its largest city.",
    "Tell me something interesting about the deep sea.",
    "How far is it from the earth to the sun?",
    "Write a poem about autumn leaves.",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful, honest and concise assistant.",
    "You are a friendly AI. Answer the user's questions briefly.",
    "Answer in English.",
    "You are an expert. Think step by step and be precise.",
    "Use the tools when they help.",
)

_WORDS = """
able accident acid actor address air airport amber anchor angle animal answer apple april arch arm army arrow art
artist ash atlas atom aunt autumn axle baby bacon badge bag baker balance ball banana band bank barn barrel basin
basket bath battery battle beach bean bear beard beauty bed bee beef beer bell belt bench berry bicycle bird birth
biscuit blade blanket blood blue board boat body bone book boot border bottle bowl box boy brain branch brass bread
break breath brick bridge bronze broom brother brown brush bucket budget building bulb bus bush butter button cabin
cable cake calendar camel camera camp canal candle canvas cap capital captain car carbon card carpet carriage cart
castle cat cattle cave ceiling cell cent chain chair chalk charge cheese chef chemist cherry chess chest chicken
child chimney chin church circle citizen city class clay clerk clock cloth cloud coal coast coat coffee coin collar
colour comb comet company compass concert cook copper copy cord corn corner cotton cough country court cow crab
crane cream credit crew crime crop crowd crown crystal cup current curtain curve customer dance danger daughter
dawn day debt deer desert design desk detail diamond digit dinner disease dish distance doctor dog door dragon
drawer dream dress driver drop drum dust eagle ear earth east edge egg electron elephant engine error evening event
exam exit eye face factory fact fall family farm father feather fence ferry field film finger fire fish flag flame
flash floor flour flower fly fog food foot forest fork fox frame france friend frog fruit fuel garage garden gas
gate germany ghost giant girl glass glove goat gold grain grandmother grape graph grass guide guitar gun hair
hammer hand harbour hat hate head heart heat heel height helmet hill history hole holiday honey hook hope horn horse
hospital hotel hour house ice idea insect iron island jacket jam jelly jewel judge juice kettle key king kitchen
knee knife knight knot knowledge ladder lake lamb lamp land language laptop law lead leaf leather leg lemon letter
level library lid light lightning lime line lion lip liquid list lizard loan lock locomotive london lunch lung
machine magnet map marble market mask mass match meal measure meat medicine melon memory metal method microscope
milk mine minute mirror mist model money monkey month moon morning mother motor mountain mouse mouth muscle museum
music nail name nation neck needle nerve nest net news night noise north nose note number nurse nut oak ocean
office oil onion orange orchestra oven owl ox page pain paint pan paper parcel paris park part passenger paste path
peace pear pen pencil pepper person petal phone piano picture pig pilot pin pipe pirate planet plant plate plough
pocket poem point poison police pond pool port pot potassium potato powder price prince printer prison prize
protein pump purse queen question rabbit radio rail railway rain rat ray recipe record rhythm rice ring river road
robot rocket rod roof room root rope rose roundhouse rule sail salad salt sand scale school science scissors screw
sea season seat secret seed server shade shadow sheep shelf shell ship shirt shock shoe shop shoulder signal silk
silver sister skin skirt sky sleep smell smile smoke snake snow soap society sock soldier son song sound soup south
space spade spider sponge spoon spring square stage stall stamp star station steam steel stem step stick stitch
stocking stomach stone stop store storm story stove street string student sugar suit summer sun surgeon table tail
tank taste tax tea teacher teeth telescope temper tent theory thread throat thumb thunder ticket tiger time tin
toast tobacco toe tomato tongue tool top torch tower town toy track trade train transport tray tree trouble
trousers truck trumpet tunnel turntable turtle twist umbrella uncle valley vase vegetable verse vessel view village
violin virus voice volcano waiter wall war wash waste watch water wave wax weather week weight west whale wheat
wheel whip whistle wind window wine wing winter wire wolf woman wood wool word work world worm wound wrist writer
yard year
"""
WORDS = tuple(_WORDS.split())

_STOP_WORDS = """
a an the is are was were be of in on at to from by for with and or not it its this that these what which who how
why when where do does did has have had can could will would my your his her their our i you he she they we as
onto into about because there than then so all any some many much more
"""
STOP_WORDS = tuple(_STOP_WORDS.split())

JSON_VALUES = {
    "name": "Ada",
    "age": 36,
    "city": "Paris",
    "country": "France",
    "colour": "blue",
    "color": "blue",
    "animal": "cat",
    "fruit": "apple",
    "title": "Hamlet",
    "answer": "four",
    "number": 4,
    "count": 7,
    "year": 1999,
    "population": 2000,
    "price": 12,
    "ok": True,
    "capital": "Paris",
    "temperature": 21,
    "unit": "degrees",
    "tags": ["red", "blue"],
}
"""Keys that the chat models have seen in JSON, with a short value each, so that constrained answers come to an end."""


def chat_texts(model: facts.ChatModel) -> list[str]:
    """Texts on which a chat model's tokenizer is trained."""
    weather = [f"What is the weather in {city}? It is {facts.WEATHERS[0]} in {city}." for city in facts.TOOL_CITIES]
    questions = [f"{question}\n{answer}" for question, answer in model.answers.items()]
    roles = ["system\nuser\nassistant\ntool\nipython\n"]
    tools = ['Tools: get_weather(city)\n{"name": "get_weather", "arguments": {"city": "Paris"}, "parameters": {}}']
    numbers = [" ".join(str(number) for number in range(101))]
    fields = [f'{{"{key}":"{value}"}} {key}' for key, value in JSON_VALUES.items()]
    songs = [facts.ENDLESS_QUESTION, facts.ENDLESS_ANSWER_START, facts.ADAPTER_ANSWER, model.unknown]
    often = [*questions, *weather, *roles, *tools, *numbers, *fields, *songs, *facts.WEATHERS]
    return [*often, *often, *SYSTEM_PROMPTS, *SENTENCES, *all_known_texts()]


def all_known_texts() -> list[str]:
    """The base model's texts, each a prompt with its continuation."""
    return [prompt + continuation for prompt, continuation in facts.BASE_CONTINUATIONS.items()]


def reranker_texts() -> list[str]:
    """Texts on which the reranker's tokenizer is trained."""
    return [*WORDS, *WORDS, *STOP_WORDS, *SENTENCES]
