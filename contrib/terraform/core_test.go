package main

import (
	"context"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

const resourceType = "lvp_volume"

// core speaks the protocol with the provider as Terraform's core does, in this process.
type core struct {
	ctx      context.Context
	server   tfprotov6.ProviderServer
	schema   *tfprotov6.Schema
	provider *tfprotov6.Schema
}

// state is the state of a volume.
type state struct{ value tftypes.Value }

// planned is the answer to a plan.
type planned struct {
	state   tftypes.Value
	replace []*tftypes.AttributePath
	diags   []*tfprotov6.Diagnostic
	private []byte
}

func open(t *testing.T) *core {
	t.Helper()
	server := providerserver.NewProtocol6(newProvider())()
	ctx := context.Background()
	found, err := server.GetProviderSchema(ctx, &tfprotov6.GetProviderSchemaRequest{})
	if err != nil || len(found.Diagnostics) > 0 {
		t.Fatal(err, found.Diagnostics)
	}
	return &core{ctx, server, found.ResourceSchemas[resourceType], found.Provider}
}

// start configures the provider; what is not given comes from the environment.
func start(t *testing.T, given values) *core {
	t.Helper()
	c := open(t)
	wantNone(t, c.configure(t, given))
	return c
}

func configureRefused(t *testing.T, given values, said string) {
	t.Helper()
	wantSaid(t, open(t).configure(t, given), said)
}

func (c *core) configure(t *testing.T, given values) []*tfprotov6.Diagnostic {
	t.Helper()
	request := &tfprotov6.ConfigureProviderRequest{Config: dynamic(t, object(t, c.provider.ValueType(), given))}
	found, err := c.server.ConfigureProvider(c.ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	return found.Diagnostics
}

func (c *core) none() state { return state{tftypes.NewValue(c.schema.ValueType(), nil)} }

func (c *core) invalid(t *testing.T, given values, said string) {
	t.Helper()
	request := &tfprotov6.ValidateResourceConfigRequest{TypeName: resourceType, Config: c.dynamic(t, given)}
	found, err := c.server.ValidateResourceConfig(c.ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	wantSaid(t, found.Diagnostics, said)
}

// plan proposes the configuration, with what the server computes taken from the state, as the core does.
func (c *core) plan(t *testing.T, before state, given values) planned {
	t.Helper()
	proposed := map[string]tftypes.Value{}
	if err := object(t, c.schema.ValueType(), given).As(&proposed); err != nil {
		t.Fatal(err)
	}
	if !before.value.IsNull() {
		known := map[string]tftypes.Value{}
		if err := before.value.As(&known); err != nil {
			t.Fatal(err)
		}
		for _, one := range c.schema.Block.Attributes {
			if one.Computed && proposed[one.Name].IsNull() {
				proposed[one.Name] = known[one.Name]
			}
		}
	}
	found, err := c.server.PlanResourceChange(c.ctx, &tfprotov6.PlanResourceChangeRequest{
		TypeName:         resourceType,
		PriorState:       dynamic(t, before.value),
		ProposedNewState: dynamic(t, tftypes.NewValue(c.schema.ValueType(), proposed)),
		Config:           c.dynamic(t, given),
	})
	if err != nil {
		t.Fatal(err)
	}
	return planned{c.value(t, found.PlannedState), found.RequiresReplace, found.Diagnostics, found.PlannedPrivate}
}

func (c *core) change(t *testing.T, before state, p planned, config *tfprotov6.DynamicValue) (state, []*tfprotov6.Diagnostic) {
	t.Helper()
	found, err := c.server.ApplyResourceChange(c.ctx, &tfprotov6.ApplyResourceChangeRequest{
		TypeName:       resourceType,
		PriorState:     dynamic(t, before.value),
		PlannedState:   dynamic(t, p.state),
		PlannedPrivate: p.private,
		Config:         config,
	})
	if err != nil {
		t.Fatal(err)
	}
	return state{c.value(t, found.NewState)}, found.Diagnostics
}

// apply plans and applies, and checks that the result is what was planned, which the core enforces.
func (c *core) apply(t *testing.T, before state, given values) state {
	t.Helper()
	p := c.plan(t, before, given)
	p.wantNoErrors(t)
	after, diags := c.change(t, before, p, c.dynamic(t, given))
	wantNone(t, diags)
	differences, err := p.state.Diff(after.value)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range differences {
		if one.Value1 != nil && one.Value1.IsFullyKnown() && len(one.Path.Steps()) > 0 {
			t.Errorf("%s was planned as %s and is %s", one.Path, one.Value1, one.Value2)
		}
	}
	return after
}

// refuse checks that a new volume is refused by what says so.
func (c *core) refuse(t *testing.T, given values, said string) {
	t.Helper()
	p := c.plan(t, c.none(), given)
	p.wantNoErrors(t)
	after, diags := c.change(t, c.none(), p, c.dynamic(t, given))
	wantSaid(t, diags, said)
	if !after.value.IsNull() {
		t.Errorf("the state has a volume that was not made: %v", after.value)
	}
}

func (c *core) destroy(t *testing.T, before state) {
	t.Helper()
	none := c.none()
	_, diags := c.change(t, before, planned{state: none.value}, dynamic(t, none.value))
	wantNone(t, diags)
}

func (c *core) read(t *testing.T, before state) state {
	t.Helper()
	request := &tfprotov6.ReadResourceRequest{TypeName: resourceType, CurrentState: dynamic(t, before.value)}
	found, err := c.server.ReadResource(c.ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	wantNone(t, found.Diagnostics)
	return state{c.value(t, found.NewState)}
}

func (c *core) importState(t *testing.T, id string) state {
	t.Helper()
	found, err := c.server.ImportResourceState(c.ctx, &tfprotov6.ImportResourceStateRequest{TypeName: resourceType, ID: id})
	if err != nil {
		t.Fatal(err)
	}
	wantNone(t, found.Diagnostics)
	return c.read(t, state{c.value(t, found.ImportedResources[0].State)})
}

func (c *core) importRefused(t *testing.T, id, said string) {
	t.Helper()
	found, err := c.server.ImportResourceState(c.ctx, &tfprotov6.ImportResourceStateRequest{TypeName: resourceType, ID: id})
	if err != nil {
		t.Fatal(err)
	}
	wantSaid(t, found.Diagnostics, said)
}

func (c *core) dynamic(t *testing.T, given values) *tfprotov6.DynamicValue {
	t.Helper()
	return dynamic(t, object(t, c.schema.ValueType(), given))
}

func (c *core) value(t *testing.T, found *tfprotov6.DynamicValue) tftypes.Value {
	t.Helper()
	value, err := found.Unmarshal(c.schema.ValueType())
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func dynamic(t *testing.T, value tftypes.Value) *tfprotov6.DynamicValue {
	t.Helper()
	found, err := tfprotov6.NewDynamicValue(value.Type(), value)
	if err != nil {
		t.Fatal(err)
	}
	return &found
}

// object returns an object with these attributes; the others are null.
func object(t *testing.T, kind tftypes.Type, given values) tftypes.Value {
	t.Helper()
	attributes := map[string]tftypes.Value{}
	for name, inner := range kind.(tftypes.Object).AttributeTypes {
		if nested, is := given[name].(values); is {
			attributes[name] = object(t, inner, nested)
		} else {
			attributes[name] = tftypes.NewValue(inner, given[name])
		}
	}
	return tftypes.NewValue(kind, attributes)
}

func (s state) want(t *testing.T, name string, value any) {
	t.Helper()
	found := map[string]tftypes.Value{}
	if err := s.value.As(&found); err != nil {
		t.Fatal(err)
	}
	if !found[name].Equal(tftypes.NewValue(found[name].Type(), value)) {
		t.Errorf("%s is %s, not %v", name, found[name], value)
	}
}

func (s state) text(t *testing.T, name string) string {
	t.Helper()
	found, text := map[string]tftypes.Value{}, ""
	if err := s.value.As(&found); err != nil {
		t.Fatal(err)
	}
	if err := found[name].As(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func (p planned) wantNoErrors(t *testing.T)           { t.Helper(); wantNone(t, p.diags) }
func (p planned) wantError(t *testing.T, said string) { t.Helper(); wantSaid(t, p.diags, said) }

func wantNone(t *testing.T, diags []*tfprotov6.Diagnostic) {
	t.Helper()
	for _, one := range diags {
		t.Fatalf("%s: %s", one.Summary, one.Detail)
	}
}

func wantSaid(t *testing.T, diags []*tfprotov6.Diagnostic, said string) {
	t.Helper()
	for _, one := range diags {
		if strings.Contains(one.Summary+"\n"+one.Detail, said) {
			return
		}
	}
	t.Errorf("%q is not said in %d diagnostics", said, len(diags))
	for _, one := range diags {
		t.Errorf("%s: %s", one.Summary, one.Detail)
	}
}
