"""A batched ``model.generate`` made speculative: the four lines are marked. Run it: python experiments/drop_in.py"""

from transformers import AutoModelForCausalLM, AutoTokenizer

import specdec  # 1
from specdec.assets import resolve

target = AutoModelForCausalLM.from_pretrained(resolve("asset:tiny/target"), dtype="float32")
draft = AutoModelForCausalLM.from_pretrained(resolve("asset:tiny/draft"), dtype="float32")  # 2
tokenizer = AutoTokenizer.from_pretrained(resolve("asset:tiny/tokenizer"))
inputs = tokenizer(["import os\n", "def f(x):\n    return", "class A:"], padding=True, return_tensors="pt")  # 3

outputs = specdec.generate(target, draft, **inputs, max_new_tokens=40)  # 4, was: target.generate(**inputs, ...)

for text in tokenizer.batch_decode(outputs, skip_special_tokens=True):
    print(text, end="\n---\n")
