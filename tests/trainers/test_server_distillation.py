"""A teacher behind a server: what it says is compared as a teacher at hand is, and what it does not say is an error."""

import pytest
import torch
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.trainers.online import questions
from tests.trainers.paired import by_prompt
from tests.trainers.rows import character_tokenizer
from tests.trainers.taught import another_model, student
from tests.trainers.test_distillation import lines_of
from tests.vllm.small_server import SmallServer
from tuneline import ServerDistillationConfig, ServerDistillationTrainer
from tuneline.divergence import KnownTokens, divergences
from tuneline.errors import ConfigError, RolloutError
from tuneline.losses.distillation import jsd_on_support
from tuneline.models.layouts import prepare_for_trees
from tuneline.trainers.server_teacher import ServerTeacher
from tuneline.trees import Branch, Tree, lay_out

TREES = [
    Tree([5, 6, 7], [Branch([8, 9], [True, True]), Branch([10, 11, 12], [True, False, True])]),
    Tree([20, 21], [Branch([22, 23, 24], [True, True, True])]),
]
MODELS = (200, {"data": [{"id": "teacher", "max_model_len": 64}]})


def says(model, changed=lambda said: said):
    """The answer of a server that has this model, computed by the model itself."""

    def answer(body, _):
        choices = []
        for index, ids in enumerate(body["prompt"]):
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            said = [None]
            for place in range(1, len(ids)):
                order = logprobs[place - 1].argsort(descending=True).tolist()
                wanted = {ids[place], *order[: body["prompt_logprobs"]]}
                said.append(
                    {
                        str(token): {"logprob": logprobs[place - 1, token].item(), "rank": order.index(token) + 1}
                        for token in wanted
                    }
                )
            choices.append({"index": index, "prompt_logprobs": changed(said)})
        return 200, {"choices": choices[::-1]}  # in any order

    return answer


@pytest.fixture
def teachers():
    """A server of `another_model`; its answers may be changed."""
    server = SmallServer({"/health": (200, {}), "/v1/models": MODELS, "/v1/completions": says(another_model())})
    with server.running():
        yield server, server.url


def ask(url, beta=0.0, top_k=3, add_tail=True, vocab_size=97):
    return ServerTeacher(url, vocab_size, beta=beta, top_k=top_k, add_tail=add_tail, timeout=30, wait=5)


@pytest.mark.parametrize(("beta", "top_k"), [(0.0, 3), (0.0, 1), (0.4, 1), (1.0, 1)])
@pytest.mark.parametrize("is_padded", [False, True])
def test_losses_and_gradients_are_those_of_the_teachers_own_numbers(beta, top_k, is_padded, teachers):
    trees, model = lay_out(TREES), student()
    known = ask(teachers[1], beta, top_k).answer(trees)
    if not is_padded:
        prepare_for_trees(model)
    found = divergences(model, trees, known, beta=beta)
    found.losses.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    plain, teacher = student(), another_model()
    expected = []
    for prompt, ids, targets in [
        ([5, 6, 7], [8, 9], [0, 1]),
        ([5, 6, 7], [10, 11, 12], [0, 2]),
        ([20, 21], [22, 23, 24], [0, 1, 2]),
    ]:
        whole = torch.tensor([prompt + ids])
        p = plain(whole).logits[0].float().log_softmax(-1)
        q = teacher(whole).logits[0].float().log_softmax(-1).detach()
        for target in targets:
            place, written = len(prompt) + target - 1, ids[target]
            top = q[place].topk(top_k).indices.tolist()
            support = top if beta == 0 else [written] if beta == 1 else list(dict.fromkeys([*top, written]))
            expected.append(jsd_on_support(p[place, support][None], q[place, support][None], beta, add_tail=True))
    expected = torch.cat(expected)
    expected.sum().backward()
    assert_close(found.losses, expected, rtol=1e-4, atol=1e-6)
    for gradient, parameter in zip(gradients, plain.parameters(), strict=True):
        assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_slopes_are_those_of_autograd():
    torch.manual_seed(0)
    logits = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    known = KnownTokens(
        torch.tensor([[1, 2], [3, 0], [5, 6], [9, 10]]),
        torch.tensor([[0.3, 0.2], [0.5, 0.0], [0.1, 0.8], [0.05, 0.01]], dtype=torch.float64).log(),
        True,
    )
    for beta in (0.0, 0.3, 1.0):
        values = known.divergence(logits.log_softmax(-1), slice(None), beta, 1.0)
        (expected,) = torch.autograd.grad(values.sum(), logits)
        found = known.divergence_and_slopes(logits.detach().log_softmax(-1), slice(None), beta, 1.0)
        assert_close(found.values, values.detach())
        assert_close(found.slopes, expected)


def build(folder, url, **options):
    settings = {
        "output_dir": str(folder), "teacher_model_server_url": url, "report_to": "none", "use_cpu": True,
        "per_device_train_batch_size": 4, "max_completion_length": 8, "max_steps": 2, "logging_steps": 1,
        "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True, **options,
    }  # fmt: skip
    return ServerDistillationTrainer(
        model=student(),
        args=ServerDistillationConfig(**settings),
        train_dataset=questions(4),
        processing_class=character_tokenizer(),
        rollout_engine=by_prompt(),
    )


@pytest.mark.parametrize(("beta", "top_k"), [(0.0, 5), (1.0, 1)])
def test_a_student_comes_nearer_to_a_teacher_elsewhere(beta, top_k, teachers, tmp_path):
    server, url = teachers
    trainer = build(tmp_path, url, beta=beta, loss_top_k=top_k, max_steps=16, learning_rate=3e-3)
    trainer.train()
    losses = [line["loss"] for line in lines_of(trainer)]
    assert losses[-1] < 0.8 * losses[0]
    assert {path for path, _ in server.calls} == {"/health", "/v1/models", "/v1/completions"}
    assert {body["prompt_logprobs"] for path, body in server.calls if body} == {top_k}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"teacher_model_server_url": None}, "teacher_model_server_url is not set"),
        ({"teacher_model_server_url": "somewhere"}, "teacher_model_server_url='somewhere' is no address"),
        ({"loss_top_k": 3, "beta": 0.5}, "loss_top_k=3 with beta=0.5"),
        ({"loss_top_k": 0, "beta": 0.0}, "loss_top_k=0 with beta=0.0"),
        ({"reverse_kl_top_1_mode": "argmax"}, "reverse_kl_top_1_mode='argmax'"),
        ({"temperature": 0.7}, "at temperature 1 only"),
        ({"teacher_model_name_or_path": "x"}, "name two teachers"),
    ],
)
def test_settings_that_no_server_can_serve_are_refused(options, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        build(tmp_path, "http://127.0.0.1:9", **options)


def test_what_a_server_leaves_out_or_knows_besides_is_an_error(teachers):
    server, url = teachers
    trees = lay_out(TREES)
    with pytest.raises(RolloutError, match=r"knows the token \d+, and the student has 3"):
        ask(url, vocab_size=3).answer(trees)
    server.answers["/v1/completions"] = says(tiny_causal_lm(), lambda said: [None] * len(said))
    with pytest.raises(RolloutError, match="leaves out log-probabilities"):
        ask(url).answer(trees)
    server.answers["/v1/completions"] = says(tiny_causal_lm(), lambda said: said[1:])
    with pytest.raises(RolloutError, match="other lengths than were sent"):
        ask(url).answer(trees)
    server.answers["/v1/models"] = (200, {"data": [{"id": "teacher", "max_model_len": 6}]})
    with pytest.raises(RolloutError, match="have 6 tokens, and it reads less than 6"):
        ask(url).answer(trees)
    server.answers["/v1/models"] = (200, {"data": []})
    with pytest.raises(ConfigError, match="serves none"):
        ask(url)


def test_an_adapter_that_is_served_too_is_not_the_teacher(teachers):
    server, url = teachers
    server.answers["/v1/models"] = (200, {"data": [{"id": "base"}, {"id": "adapter", "parent": "base"}]})
    assert ask(url).model == "base"
