"""The client: it trains on its share, unless it is one of the attackers."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import data, make_model, train

app = ClientApp()


@app.train()
def on_train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    config = message.content["config"]
    given = message.content["arrays"].to_torch_state_dict()
    model = make_model()
    model.load_state_dict(given)
    loss = train(model, client)
    new = {name: value.detach().to(given[name].dtype) for name, value in model.state_dict().items()}
    if client < config["attackers"]:
        # Away from where it learned to go, and in every other round of the first one no numbers at all.
        wrong = float("nan") if client == 0 and config["server-round"] % 2 else -5.0
        for name, value in new.items():
            if value.is_floating_point():
                new[name] = given[name] + wrong * (value - given[name])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data(client)[0])})
    return Message(RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}), reply_to=message)
